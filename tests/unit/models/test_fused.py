"""Fused norms, gates and positions: against transformers' own in fp64, and only where they belong."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.backbone import fused
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.families import FUSED
from lingo_ds.models.backbone.fused import Functions, FusedNorm
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.ops import compiled, elementwise
from lingo_ds.utils.errors import UserError

CPU = torch.device("cpu")
ALONE = DistEnv(0, 0, 1, 1, CPU)
TOKENS, WIDTHS = 37, [3, 16, 20, 512]
"""Widths: less than a vector, whole ones, and a rest."""

pytestmark = pytest.mark.skipif(compiled.library() is None, reason="no C++ compiler, or no AVX2")


def with_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The output for fp64 or fp32 leaves of these values, and their gradients for a random one of it."""
    leaves = [part.detach().clone().requires_grad_() for part in inputs]
    out = function(*leaves)
    out.backward(torch.linspace(-2, 3, out.numel()).view(out.shape).to(out.dtype))
    return [out, *(leaf.grad for leaf in leaves)]


def assert_alike(ours: Callable, theirs: Callable, *inputs: Tensor) -> None:
    """Both functions and their gradients agree to fp32, and so do several threads to the bit."""
    expected = with_gradients(theirs, *(part.double() for part in inputs))
    found = with_gradients(ours, *inputs)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.double(), other, rtol=2e-6, atol=2e-6 * float(other.abs().max()))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert all(map(torch.equal, with_gradients(ours, *inputs), found))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("make", [modeling_llama.LlamaRMSNorm, modeling_qwen3.Qwen3RMSNorm])
@pytest.mark.parametrize("width", WIDTHS)
def test_norm(width, make):
    torch.manual_seed(0)
    norm, sizes = make(width, eps=1e-3), torch.tensor([1e-3, 1, 1e3])
    x = torch.randn(3, TOKENS * 12, width) * sizes[:, None, None]
    nn.init.normal_(norm.weight)
    exact = make(width, eps=1e-3)
    exact.weight = nn.Parameter(norm.weight.double())

    def theirs(x: Tensor) -> Tensor:  # their own computes in fp32
        return exact.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)

    for part in x:
        assert_alike(FusedNorm(norm, elementwise.RMSNorm.apply), theirs, part)
    assert_alike(
        FusedNorm(norm, elementwise.RMSNorm.apply), theirs, x[1].view(TOKENS, 12, width).transpose(0, 1)
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_gate(width):
    torch.manual_seed(0)
    gate, up = torch.randn(1, TOKENS * 60, width) * 20, torch.randn(1, TOKENS * 60, width)
    assert_alike(elementwise.SiLUGate.apply, lambda gate, up: nn.functional.silu(gate) * up, gate, up)


def test_gate_far_out_is_zero_or_the_product():
    gate, up = torch.tensor([[-1e20, -200, -88, 88, 200]]), torch.full((1, 5), 2.0)
    out, of_gate, of_up = with_gradients(elementwise.SiLUGate.apply, gate, up)
    assert out.tolist() == [pytest.approx([0, 0, 0, 176, 400])]
    assert of_gate.isfinite().all() and of_up.isfinite().all()


# -- in a model


def tiny(family: str) -> PreTrainedModel:
    config = AutoConfig.for_model(
        family,
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("family", sorted(FUSED))
def test_a_model_computes_the_same(family, rows, tmp_path):
    model = tiny(family).eval()
    model.save_pretrained(tmp_path)
    ids = torch.arange(11 * rows).view(rows, 11)

    def out_and_gradient(model: nn.Module) -> tuple[Tensor, Tensor, set[str]]:
        table = model.get_input_embeddings().weight
        embedded = table.detach()[ids].requires_grad_()
        out = model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        out.square().sum().backward()
        return out, embedded.grad, steps_behind(out)

    loaded = load_backbone(read_spec(tmp_path), BackboneOptions(), dtype=torch.float32, env=ALONE)
    out, gradient, steps = out_and_gradient(loaded.module)
    assert {"RMSNormBackward", "SiLUGateBackward"} <= steps and "SiluBackward0" not in steps
    expected, of_expected, _ = out_and_gradient(model.double())
    assert torch.allclose(out.double(), expected, rtol=0, atol=2e-5)
    assert torch.allclose(gradient.double(), of_expected, rtol=0, atol=2e-5 * float(of_expected.abs().max()))


def steps_behind(out: Tensor) -> set[str]:
    """Names of what autograd would go back through."""
    seen, left = set(), [out.grad_fn]
    while left:
        step = left.pop()
        if step is not None and step not in seen:
            seen.add(step)
            left += [before for before, _ in step.next_functions]
    return {type(step).__name__ for step in seen}


FUSED_STEPS = {"RMSNormBackward", "SiLUGateBackward"}


@pytest.mark.parametrize("why", ["dtype", "compiler", "code", "off"])
def test_elsewhere_the_model_stays_as_it_is(why, tmp_path, monkeypatch):
    dtype = torch.bfloat16 if why == "dtype" else torch.float32
    if why == "compiler":
        monkeypatch.setattr(fused, "library", lambda: None)
    if why == "code":  # that came with a backbone
        monkeypatch.setattr(modeling_llama.LlamaModel, "__module__", "remote.modeling_llama")
    tiny("llama").save_pretrained(tmp_path)
    options = BackboneOptions(fused_kernels="off" if why == "off" else "auto")
    loaded = load_backbone(read_spec(tmp_path), options, dtype=dtype, env=ALONE)
    embedded = torch.zeros(1, 4, 24, dtype=dtype, requires_grad=True)
    out = loaded.module(inputs_embeds=embedded, use_cache=False).last_hidden_state
    assert not FUSED_STEPS & steps_behind(out)


def test_other_models_of_the_process_stay_transformers_own(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    load_backbone(read_spec(tmp_path), BackboneOptions(), dtype=torch.float32, env=ALONE)
    embedded = torch.zeros(1, 4, 24, requires_grad=True)
    out = tiny("llama")(inputs_embeds=embedded, use_cache=False).last_hidden_state
    assert not FUSED_STEPS & steps_behind(out)


def test_ligers_are_refused_without_a_gpu(folder):
    with pytest.raises(UserError, match=r"backbone\.fused_kernels: 'liger': needs a GPU: set it to auto"):
        load_backbone(
            read_spec(folder), BackboneOptions(fused_kernels="liger"), dtype=torch.float32, env=ALONE
        )


@pytest.mark.parametrize("family", sorted(FUSED))
def test_positions_are_replaced_in_this_model_alone(family, tmp_path, monkeypatch):
    """By transformers' own function here, counted, in place of a GPU's."""
    called = []
    positions = sys.modules[type(tiny(family)).__module__].apply_rotary_pos_emb

    def counted(*args: Tensor) -> tuple[Tensor, Tensor]:
        called.append(args[0].shape)
        return positions(*args)

    functions = Functions(elementwise.RMSNorm.apply, elementwise.SiLUGate.apply, counted)
    monkeypatch.setattr(fused, "_functions", lambda *_: functions)
    tiny(family).save_pretrained(tmp_path)
    loaded = load_backbone(read_spec(tmp_path), BackboneOptions(), dtype=torch.float32, env=ALONE)
    ids = torch.arange(11)[None]
    with torch.no_grad():
        out = loaded.module(input_ids=ids, use_cache=False).last_hidden_state
        assert len(called) == 2
        expected = tiny(family).eval()(input_ids=ids, use_cache=False).last_hidden_state
    assert len(called) == 2
    assert torch.allclose(out, expected, atol=1e-4)
