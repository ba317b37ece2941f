"""Loading a frozen backbone from its files, against transformers' own loading; no process group."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    BertConfig,
    EsmConfig,
)

from lingo_ds.models.backbone import backbone
from lingo_ds.models.backbone.backbone import compute_dtype
from lingo_ds.models.backbone.spec import read_spec
from tests.unit.models.random_models import (
    COMMON,
    FAMILIES,
    assert_same_model,
    change_tensors,
    decoder_maps,
    load,
    random_model,
    save,
    some_input,
)

pytestmark = pytest.mark.usefixtures("unfused")


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_causal_model_loads_as_transformers_loads_it(tmp_path, family, tied):
    folder = save(random_model(FAMILIES[family], tied=tied), tmp_path)
    assert_same_model(load(folder), folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_base_model_without_prefix_loads(tmp_path, family):
    folder = save(random_model(FAMILIES[family], tied=True).base_model, tmp_path)
    keys = load_file(folder / "model.safetensors").keys()
    assert not any(key.startswith(("model.", "transformer.", "gpt_neox.")) for key in keys)
    assert_same_model(load(folder), folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_has_the_same_hidden_states_and_full_precision_buffers(tmp_path, family):
    folder = save(random_model(FAMILIES[family], tied=True), tmp_path)
    assert_same_model(load(folder, dtype=torch.bfloat16), folder, torch.bfloat16)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_mode_has_no_dropout(tmp_path, family):
    backbone = load(save(random_model(FAMILIES[family], tied=True), tmp_path))
    input_ids, mask = some_input()
    with torch.no_grad():
        evaluated = backbone.hidden_states(input_ids, mask)
        backbone.train()
        assert backbone.module.training
        trained = backbone.hidden_states(input_ids, mask)
    assert torch.equal(trained, evaluated)


def test_real_backbone_loads_as_transformers_loads_it(shared):
    folder = shared / "backbones" / "stories260k"
    assert_same_model(load(folder), folder)
    assert_same_model(load(folder, dtype=torch.bfloat16), folder, torch.bfloat16)


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_recomputes_and_changes_no_gradient(tmp_path, family):
    folder = save(random_model(FAMILIES[family], tied=True), tmp_path)
    input_ids, mask = some_input()
    gradients, calls = [], []
    for checkpointing in (False, True):
        backbone = load(folder, checkpointing=checkpointing)
        name, linear = next(iter(decoder_maps(backbone.module).items()))
        d_out = linear(torch.zeros(read_spec(folder).linear_maps[name][1])).numel()
        added = torch.linspace(-0.1, 0.1, d_out).requires_grad_()
        seen = []
        linear.register_forward_hook(
            lambda _m, _a, out, seen=seen, added=added: seen.append(1) or out + added
        )
        backbone.train()
        hidden = backbone.hidden_states(input_ids, mask)
        F.normalize(hidden[mask.bool()], dim=-1)[:, 0].sum().backward()
        gradients.append(added.grad)
        calls.append(len(seen))
    assert calls == [1, 2]
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-9)


ENCODERS = {
    "bert": BertConfig(**{**COMMON, "pad_token_id": 0}, intermediate_size=48),
    "esm": EsmConfig(
        **COMMON, intermediate_size=48, position_embedding_type="rotary", token_dropout=True, mask_token_id=3
    ),
    "esm_absolute": EsmConfig(
        **COMMON, intermediate_size=48, position_embedding_type="absolute", mask_token_id=3
    ),
}


@pytest.mark.parametrize("family", ENCODERS)
def test_encoder_loads_as_transformers_loads_it_without_pooler_and_contact_head(tmp_path, family, warnings):
    torch.manual_seed(0)
    model = AutoModel.from_config(ENCODERS[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = save(model, tmp_path)
    heads = [p for name, p in model.named_parameters() if name.startswith(("pooler", "contact_head"))]
    assert heads
    spec, backbone = read_spec(folder), load(folder)
    assert not spec.causal
    assert spec.parameters == sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in heads)
    names = [name for name, _ in backbone.module.named_parameters()]
    assert not any("pooler" in name or "contact_head" in name for name in (*names, *spec.linear_maps))
    assert_same_model(backbone, folder)
    change_tensors(  # as in the checkpoint of a masked language model
        folder, lambda tensors: [tensors.pop(key) for key in list(tensors) if key.startswith("pooler")]
    )
    assert_same_model(load(folder), folder)
    assert not warnings


@pytest.mark.parametrize("kept", ["none", "one for each layer, as in the first checkpoints"])
def test_rotary_frequencies_of_an_encoder_need_not_be_in_the_file(tmp_path, kept, warnings):
    torch.manual_seed(0)
    model = AutoModel.from_config(ENCODERS["esm"])
    whole, folder = save(model, tmp_path / "whole"), save(model, tmp_path / "folder")
    old = {f"encoder.layer.{k}.attention.self.rotary_embeddings.inv_freq": torch.ones(4) for k in (0, 1)}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if "inv_freq" in key]:
            del tensors[key]
        tensors.update({} if kept == "none" else old)

    change_tensors(folder, change)
    assert_same_model(load(folder), whole)
    assert not warnings


def test_activation_checkpointing_rests_in_evaluation(tmp_path):
    folder = save(random_model(FAMILIES["llama"], tied=True), tmp_path)
    backbone = load(folder, checkpointing=True)
    backbone.train()
    backbone.train(False)
    assert_same_model(backbone, folder)


@pytest.mark.parametrize("features", [["avx512_bf16"], ["amx_bf16", "avx512f"], ["avx512f"], []])
def test_a_cpu_computes_wide_models_in_bf16_where_it_has_instructions_for_it(monkeypatch, features):
    monkeypatch.setattr(backbone, "processor_features", lambda: features)
    cpu = torch.device("cpu")
    has = features not in (["avx512f"], [])
    assert compute_dtype("auto", cpu, hidden_size=896) == (torch.bfloat16 if has else torch.float32)
    assert compute_dtype("auto", cpu, hidden_size=256) == torch.float32
    assert compute_dtype("auto", cpu, hidden_size=896, quantization="nf4") == torch.float32
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert compute_dtype(name, cpu, hidden_size=896) == dtype
