"""The adapter folder: reads back as it was, loads in stock PEFT with our logits, refuses what is damaged."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lingo_ds.data.batches import Batch, attention_mask
from lingo_ds.data.task import make_task
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.export.adapter_card import BackboneCard, Card, SavedAdapter
from lingo_ds.export.adapter_folder import load_adapter, save_adapter
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import BankLayout, Site
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import BackboneSpec, read_spec
from lingo_ds.utils.errors import UserError

CPU = torch.device("cpu")
ALONE = DistEnv(0, 0, 1, 1, CPU)
CLASSES, RANK, ALPHA, PAD = 3, 4, 6.0, 0
SETTINGS = {
    "lora_dropout": 0.1,
    "target_r": 2,
    "tinit": 3,
    "tfinal": 4,
    "deltaT": 5,
    "beta1": 0.85,
    "beta2": 0.85,
    "orth_reg_weight": 1e-12,
    "total_step": 100,
}
LORA_SETTINGS = {"lora_dropout": 0.1, "revision": None}
CARD = Card(
    task=make_task("toy", classes=CLASSES, template=None, domain=None, max_length=32),
    pooling="last",
    backbone=BackboneCard(path="toy", fingerprint="0" * 64),
    step=7,
    at_budget=True,
    dev={"mcc": 0.5, "auroc": None},
)

SMALL = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
OPT = {
    "ffn_dim": 24,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY = {
    "opt": ("opt", {**SMALL, **OPT, "word_embed_proj_dim": 16}),
    "opt-350m": ("opt", {**SMALL, **OPT, "word_embed_proj_dim": 8, "do_layer_norm_before": False}),
    "gpt2": ("gpt2", {"vocab_size": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40}),
    "gpt_neox": ("gpt_neox", {**SMALL, "intermediate_size": 24, "max_position_embeddings": 40}),
    "mistral": ("mistral", {**SMALL, "intermediate_size": 24, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", {**SMALL, "intermediate_size": 24, "num_key_value_heads": 1}),
    "phi": ("phi", {**SMALL, "intermediate_size": 24, "max_position_embeddings": 40}),
}
FAMILIES = ["llama", *TINY]


def write_tiny(folder: Path, name: str) -> Path:
    """A folder with the random weights of a language model, as on the hub."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, settings = TINY[name]
    config = AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Callable[[str], Path]:
    """The folder of a family's backbone, made once."""
    made: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name == "llama":
            return request.getfixturevalue("shared") / "backbones" / "stories260k"
        if name not in made:
            made[name] = write_tiny(tmp_path_factory.mktemp(name), name)
        return made[name]

    return folder_of


def ragged(sites: list[Site]) -> tuple[int, ...]:
    """Ranks 4, 0, 3, 1, 2, 4, 0, ...: full, none and in between."""
    return tuple((4, 0, 3, 1, 2)[k % 5] for k in range(len(sites)))


def full(sites: list[Site]) -> tuple[int, ...]:
    """Every site's rank where nothing was pruned."""
    return (RANK,) * len(sites)


def random_adapter(
    spec: BackboneSpec, *, ranks: Callable = ragged, targets: str | list = "all-linear", has_lam: bool = True
) -> SavedAdapter:
    sites = choose_sites(spec.linear_maps, targets=targets, family_default=spec.target_names)
    return filled(BankLayout(tuple(sites), ranks(sites), (CLASSES, spec.output_size), has_lam))


def random_lora(spec: BackboneSpec, *, targets: str | list = "all-linear") -> SavedAdapter:
    return random_adapter(spec, ranks=full, targets=targets, has_lam=False)


def random_head(spec: BackboneSpec) -> SavedAdapter:
    """What `adapter.method=none` leaves: no sites, only the head."""
    return filled(BankLayout((), (), (CLASSES, spec.output_size), has_lam=False))


def filled(layout: BankLayout) -> SavedAdapter:
    values = torch.randn(layout.size, generator=torch.Generator().manual_seed(1)) * 0.3
    return SavedAdapter(layout, values, ALPHA, RANK, CARD)


def save(folder: Path, adapter: SavedAdapter, spec: BackboneSpec) -> Path:
    settings = SETTINGS if adapter.layout.has_lam else LORA_SETTINGS
    save_adapter(folder, adapter, spec=spec, backbone_path=str(spec.folder), settings=settings)
    return folder


def adapted(spec: BackboneSpec, adapter: SavedAdapter) -> AdaptedModel:
    """Our model with this adapter, through a bank as in evaluation."""
    backbone = load_backbone(spec, BackboneOptions(), dtype=torch.float32, env=ALONE)
    bank = AdapterBank(
        adapter.layout,
        scale=adapter.alpha / adapter.rank,
        dtype=torch.float32,
        device=CPU,
        scalars=5,
        importance=False,
    )
    model = AdaptedModel(backbone, bank, pooling="last", dropout=0.0)
    model.replace(adapter.layout, adapter.values)
    return model


def padded_batch() -> Batch:
    """Four examples of 9, 1, 5 and 7 tokens, padded on the right."""
    lengths = torch.tensor([9, 1, 5, 7])
    ids = torch.randint(3, 32, (4, 9), generator=torch.Generator().manual_seed(2))
    ids[torch.arange(9) >= lengths[:, None]] = PAD
    mask = attention_mask(lengths, ids.shape[1])
    return Batch(ids, mask, lengths, torch.zeros(4).long(), torch.arange(4), torch.ones(4))


@torch.no_grad()
def our_logits(model: AdaptedModel, batch: Batch) -> Tensor:
    model.backbone.train(False)
    return batch.logits(model)


def in_peft(backbone: Path, folder: Path) -> nn.Module:
    """The model that a user of stock PEFT gets."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=CLASSES, pad_token_id=PAD, dtype=torch.float32
    )
    return PeftModel.from_pretrained(base, folder).eval()


@torch.no_grad()
def logits_in_peft(model: nn.Module, batch: Batch) -> Tensor:
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def peft_logits(backbone: Path, folder: Path, batch: Batch) -> Tensor:
    """What a user of stock PEFT gets."""
    return logits_in_peft(in_peft(backbone, folder), batch)


@pytest.mark.filterwarnings("error::UserWarning:peft")  # e.g. missing keys
@pytest.mark.parametrize("name", FAMILIES)
def test_stock_peft_gives_our_logits(name: str, backbone: Callable[[str], Path], tmp_path: Path):
    pytest.importorskip("peft")
    spec, batch = read_spec(backbone(name)), padded_batch()
    adapter = random_adapter(spec)
    assert 0 in adapter.layout.ranks
    model = adapted(spec, adapter)
    expected = our_logits(model, batch)
    folder = save(tmp_path / "adapter", adapter, spec)
    error = (peft_logits(backbone(name), folder, batch) - expected).abs().max()
    assert error < 1e-4
    for k, rank in enumerate(adapter.layout.ranks):  # each site is seen in these logits
        if rank:
            less = adapter.values.clone()
            adapter.layout.site(less, k).lam.zero_()
            model.replace(adapter.layout, less)
            effect = (our_logits(model, batch) - expected).abs().max()
            assert effect > 3 * error, adapter.layout.sites[k].name


@pytest.mark.filterwarnings("error::UserWarning:peft")
@pytest.mark.parametrize("name", FAMILIES)
def test_stock_peft_gives_the_logits_of_our_lora(name: str, backbone: Callable[[str], Path], tmp_path: Path):
    """And would write the folder itself as we do: the same tensors under the same names."""
    pytest.importorskip("peft")
    spec, batch = read_spec(backbone(name)), padded_batch()
    adapter = random_lora(spec)
    model = adapted(spec, adapter)
    expected = our_logits(model, batch)
    folder = save(tmp_path / "adapter", adapter, spec)
    theirs = in_peft(backbone(name), folder)
    error = (logits_in_peft(theirs, batch) - expected).abs().max()
    assert error < 1e-4
    for k, site in enumerate(adapter.layout.sites):  # each site is seen in these logits
        less = adapter.values.clone()
        adapter.layout.site(less, k).p.zero_()
        model.replace(adapter.layout, less)
        assert (our_logits(model, batch) - expected).abs().max() > 3 * error, site.name
    theirs.save_pretrained(tmp_path / "theirs")
    ours, written = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path / "theirs"))
    assert ours.keys() == written.keys()
    assert all(torch.equal(ours[name], written[name]) for name in ours)


@pytest.mark.filterwarnings("error::UserWarning:peft")
@pytest.mark.parametrize("name", FAMILIES)
def test_stock_peft_gives_the_logits_of_a_head_alone(
    name: str, backbone: Callable[[str], Path], tmp_path: Path
):
    pytest.importorskip("peft")
    spec, batch = read_spec(backbone(name)), padded_batch()
    adapter = random_head(spec)
    expected = our_logits(adapted(spec, adapter), batch)
    folder = save(tmp_path / "adapter", adapter, spec)
    model = in_peft(backbone(name), folder)
    assert torch.allclose(logits_in_peft(model, batch), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.01  # a head of zeros would agree as well
    assert not [name for name, _ in model.named_parameters() if "lora_" in name]


@pytest.mark.filterwarnings("error::UserWarning:peft")
@pytest.mark.parametrize("has_lam", [True, False], ids=["svd", "lora"])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r"layers\.1\..*"], ids=["list", "regex"])
def test_stock_peft_adapts_the_chosen_sites_only(
    targets: str | list[str], has_lam: bool, backbone: Callable[[str], Path], tmp_path: Path
):
    """And scales by the initial rank, which no site has any more."""
    pytest.importorskip("peft")
    spec, batch = read_spec(backbone("qwen2")), padded_batch()
    pruned = random_adapter(spec, targets=targets, ranks=lambda sites: (3,) + (1,) * (len(sites) - 1))
    adapter = pruned if has_lam else random_lora(spec, targets=targets)
    folder = save(tmp_path / "adapter", adapter, spec)
    found = peft_logits(backbone("qwen2"), folder, batch)
    assert torch.allclose(found, our_logits(adapted(spec, adapter), batch), rtol=0, atol=1e-4)


def test_saved_logits_are_the_evaluated_ones(backbone: Callable[[str], Path], tmp_path: Path):
    """Known defect 11: what is read back is what was saved, out of a bank with masked triplets too."""
    spec, batch = read_spec(backbone("qwen2")), padded_batch()
    adapter = random_adapter(spec, ranks=lambda sites: (RANK,) * len(sites))
    model = adapted(spec, adapter)
    kept = torch.rand(adapter.layout.triplets, generator=torch.Generator().manual_seed(3)) < 0.5
    model.bank.set_mask(kept.numpy())
    expected = our_logits(model, batch)
    layout, values = model.bank.kept_values()
    folder = save(tmp_path / "adapter", SavedAdapter(layout, values, ALPHA, RANK, CARD), spec)
    saved = load_adapter(folder, spec)
    assert saved.layout.triplets == kept.sum()
    model.replace(saved.layout, saved.values)
    assert torch.allclose(our_logits(model, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt-350m"])
def test_round_trip(name: str, backbone: Callable[[str], Path], tmp_path: Path):
    spec = read_spec(backbone(name))
    adapter = random_adapter(spec)
    saved = load_adapter(save(tmp_path / "adapter", adapter, spec), spec)
    assert (saved.alpha, saved.rank, saved.card) == (ALPHA, RANK, CARD)
    whole = [
        (site, rank) for site, rank in zip(adapter.layout.sites, adapter.layout.ranks, strict=True) if rank
    ]
    assert list(zip(saved.layout.sites, saved.layout.ranks, strict=True)) == whole
    assert saved.layout.size == adapter.layout.size  # rank 0 has no entries
    assert torch.equal(saved.layout.head(saved.values), adapter.layout.head(adapter.values))
    for k, site in enumerate(saved.layout.sites):
        mine = saved.layout.site(saved.values, k)
        theirs = adapter.layout.site(adapter.values, adapter.layout.sites.index(site))
        assert torch.equal(mine.p, theirs.p)
        assert torch.equal(mine.q, theirs.q)
        assert torch.allclose(mine.lam, theirs.lam, rtol=3e-7, atol=0)  # went through PEFT's r + 1e-5


@pytest.mark.parametrize("make", [random_lora, random_head], ids=["lora", "head alone"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt-350m"])
def test_round_trip_without_lam_is_exact(
    name: str, make: Callable, backbone: Callable[[str], Path], tmp_path: Path
):
    spec = read_spec(backbone(name))
    adapter = make(spec)
    saved = load_adapter(save(tmp_path / "adapter", adapter, spec), spec)
    assert (saved.alpha, saved.rank, saved.card) == (ALPHA, RANK, CARD)
    assert saved.layout == adapter.layout
    assert torch.equal(saved.values, adapter.values)


def test_config_says_what_kind_of_adapter_it_is(backbone: Callable[[str], Path], tmp_path: Path):
    spec = read_spec(backbone("qwen2"))
    lora, head = (
        json.loads((save(tmp_path / make.__name__, make(spec), spec) / "adapter_config.json").read_text())
        for make in (random_lora, random_head)
    )
    for config in (lora, head):
        assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", RANK, ALPHA)
        assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
        assert not {"init_r", "target_r", "rank_pattern"} & config.keys()
        assert LORA_SETTINGS.items() <= config.items()
    assert head["target_modules"] == "dummy-target-modules"
    assert lora["target_modules"] == [f"model.{name}" for name in spec.linear_maps]
    assert list(load_file(tmp_path / "random_head" / "adapter_model.safetensors")) == [
        "base_model.model.score.weight"
    ]


def test_folder_is_replaced_whole(backbone: Callable[[str], Path], tmp_path: Path):
    spec = read_spec(backbone("qwen2"))
    folder = save(tmp_path / "run" / "adapter", random_adapter(spec), spec)
    (folder / "left over").write_text("x")
    adapter = random_adapter(spec, ranks=lambda sites: (1,) * len(sites))
    save(folder, adapter, spec)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "task.json",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
    assert load_adapter(folder, spec).layout.ranks == adapter.layout.ranks


def test_no_tensor_is_empty_and_all_are_fp32(backbone: Callable[[str], Path], tmp_path: Path):
    """PITFALLS 5: empty adapters, 40-byte files."""
    spec = read_spec(backbone("qwen2"))
    adapter = random_adapter(spec)
    tensors = load_file(save(tmp_path / "adapter", adapter, spec) / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == adapter.layout.size
    assert all(tensor.numel() and tensor.dtype == torch.float32 for tensor in tensors.values())
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "ADALORA"
    assert SETTINGS.items() <= config.items()
    assert sum(map(sum, config["rank_pattern"].values())) == adapter.layout.triplets


# -- what is refused


@pytest.fixture
def good(backbone: Callable[[str], Path], tmp_path: Path) -> tuple[Path, BackboneSpec]:
    spec = read_spec(backbone("qwen2"))
    return save(tmp_path / "adapter", random_adapter(spec), spec), spec


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def reconfigure(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


NAMES = ("adapter_model.safetensors", "adapter_config.json", "task.json")
SITE = "base_model.model.model.layers.0.self_attn.q_proj"
FAR = "base_model.model.model.layers.7.self_attn.q_proj"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage", "folder", "pipe", "deep"])
def test_damaged_files_are_refused(name: str, damage: str, good: tuple[Path, BackboneSpec]):
    folder, spec = good
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "pipe":
        os.mkfifo(path)
    elif damage != "missing":
        damages = {"empty": b"", "cut": content[: len(content) // 2], "garbage": b"\xff\xfe" * 50}
        path.write_bytes((damages | {"deep": b"[" * 100_000})[damage])
    with pytest.raises(UserError) as caught:
        load_adapter(folder, spec)
    assert str(folder) in str(caught.value)


def test_missing_folder_is_refused(good: tuple[Path, BackboneSpec]):
    folder, spec = good
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="adapter"):
        load_adapter(folder, spec)


CHANGES = {
    "no head": lambda t: t.pop("base_model.model.score.weight"),
    "head of another size": lambda t: t.update({"base_model.model.score.weight": torch.zeros(CLASSES, 17)}),
    "head with one axis": lambda t: t.update({"base_model.model.score.weight": torch.zeros(16)}),
    "head with a bias": lambda t: t.update({"base_model.model.score.bias": torch.zeros(CLASSES)}),
    "no lora_A": lambda t: t.pop(f"{SITE}.lora_A"),
    "no lora_B": lambda t: t.pop(f"{SITE}.lora_B"),
    "no lora_E": lambda t: t.pop(f"{SITE}.lora_E"),
    "lora_A of another width": lambda t: t.update({f"{SITE}.lora_A": torch.zeros(RANK, 17)}),
    "lora_B of another height": lambda t: t.update({f"{SITE}.lora_B": torch.zeros(17, RANK)}),
    "lora_B transposed": lambda t: t.update({f"{SITE}.lora_B": t[f"{SITE}.lora_B"].T.contiguous()}),
    "lora_E of another rank": lambda t: t.update({f"{SITE}.lora_E": torch.zeros(RANK - 1, 1)}),
    "lora_A of another rank": lambda t: t.update({f"{SITE}.lora_A": torch.zeros(RANK - 1, 16)}),
    "lora_A of one number": lambda t: t.update({f"{SITE}.lora_A": torch.tensor(1.0)}),
    "a site that is not there": lambda t: t.update({f"{FAR}.lora_A": torch.zeros(4, 16)}),
    "plain LoRA": lambda t: t.update({f"{SITE}.lora_A.weight": torch.zeros(4, 16)}),
    "one tensor too many": lambda t: t.update({f"{SITE}.lora_magnitude_vector": torch.zeros(16)}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_tensors_that_do_not_fit_are_refused(change: Callable, good: tuple[Path, BackboneSpec]):
    folder, spec = good
    rewrite(folder, change)
    with pytest.raises(UserError) as caught:
        load_adapter(folder, spec)
    assert str(folder) in str(caught.value)


@pytest.fixture
def good_lora(backbone: Callable[[str], Path], tmp_path: Path) -> tuple[Path, BackboneSpec]:
    spec = read_spec(backbone("qwen2"))
    return save(tmp_path / "adapter", random_lora(spec), spec), spec


A, B = f"{SITE}.lora_A.weight", f"{SITE}.lora_B.weight"
LORA_CHANGES = {
    "no head": lambda t: t.pop("base_model.model.score.weight"),
    "no lora_A": lambda t: t.pop(A),
    "no lora_B": lambda t: t.pop(B),
    "merged weights": lambda t: t.update({f"{SITE}.weight": t.pop(B) @ t.pop(A)}),
    "an extra lora_E": lambda t: t.update({f"{SITE}.lora_E": torch.zeros(RANK, 1)}),
    "AdaLoRA's names": lambda t: t.update({f"{SITE}.lora_A": t.pop(A), f"{SITE}.lora_B": t.pop(B)}),
    "an extra bias": lambda t: t.update({f"{SITE}.lora_B.bias": torch.zeros(16)}),
    "lora_A of another width": lambda t: t.update({A: torch.zeros(RANK, 17)}),
    "lora_A of another rank": lambda t: t.update({A: torch.zeros(RANK - 1, 16)}),
    "lora_A of one number": lambda t: t.update({A: torch.tensor(1.0)}),
    "lora_A with one axis": lambda t: t.update({A: torch.zeros(RANK)}),
    "lora_B transposed": lambda t: t.update({B: t[B].T.contiguous()}),
    "a site that is not there": lambda t: t.update({f"{FAR}.lora_A.weight": torch.zeros(4, 16)}),
}


@pytest.mark.parametrize("change", LORA_CHANGES.values(), ids=LORA_CHANGES)
def test_tensors_that_are_no_lora_of_the_backbone_are_refused(
    change: Callable, good_lora: tuple[Path, BackboneSpec]
):
    folder, spec = good_lora
    rewrite(folder, change)
    with pytest.raises(UserError) as caught:
        load_adapter(folder, spec)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"peft_type": "LOHA"},
        {"peft_type": "lora"},
        {"peft_type": None},
        {"peft_type": ["LORA"]},
        {"peft_type": "ADALORA"},
        {"peft_type": "ADALORA", "init_r": RANK},
        {"r": None},
        {"r": "four"},
        {"r": 0},
        {"lora_alpha": None},
    ],
    ids=str,
)
def test_lora_config_that_says_something_else_is_refused(changes: dict, good_lora: tuple[Path, BackboneSpec]):
    folder, spec = good_lora
    reconfigure(folder, **changes)
    with pytest.raises(UserError) as caught:
        load_adapter(folder, spec)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "changes", [{"peft_type": "LORA"}, {"peft_type": "LORA", "r": RANK}, {"peft_type": "IA3"}], ids=str
)
def test_adalora_under_another_name_is_refused(changes: dict, good: tuple[Path, BackboneSpec]):
    folder, spec = good
    reconfigure(folder, **changes)
    with pytest.raises(UserError) as caught:
        load_adapter(folder, spec)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"init_r": None}, {"init_r": "four"}, {"init_r": 0}, {"init_r": -4}, {"lora_alpha": [1]}],
    ids=str,
)
def test_config_without_a_scale_is_refused(changes: dict, good: tuple[Path, BackboneSpec]):
    folder, spec = good
    reconfigure(folder, **changes)
    with pytest.raises(UserError) as caught:
        load_adapter(folder, spec)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "task.json"])
@pytest.mark.parametrize("content", ["[]", "null", "3"])
def test_json_that_is_no_object_is_refused(name: str, content: str, good: tuple[Path, BackboneSpec]):
    folder, spec = good
    (folder / name).write_text(content)
    with pytest.raises(UserError):
        load_adapter(folder, spec)


@pytest.mark.parametrize("other", ["gpt2", "phi", "gpt_neox", "opt"])
def test_adapter_of_another_family_is_refused(
    other: str, good: tuple[Path, BackboneSpec], backbone: Callable[[str], Path]
):
    folder, _ = good
    with pytest.raises(UserError, match="backbone"):
        load_adapter(folder, read_spec(backbone(other)))


def test_adapter_of_another_size_is_refused(good: tuple[Path, BackboneSpec], tmp_path: Path):
    """The same family and names, other widths inside: only the shapes tell."""
    from transformers import AutoConfig

    folder, _ = good
    model_type, settings = TINY["qwen2"]
    AutoConfig.for_model(model_type, **{**settings, "intermediate_size": 28}).save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(UserError, match="mlp"):
        load_adapter(folder, read_spec(tmp_path / "other"))
