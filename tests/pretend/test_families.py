"""Every family on the pretend card: the CPU's logits and gradients, by flash attention and without it."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, LlamaConfig, PreTrainedConfig

from lingo_ds.data.batches import attention_mask
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel, Pooling
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import uniform_layout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.families import TARGETS
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.utils.transfer import pinned, to_device
from tests.unit.models.family_table import config_of
from tests.unit.models.test_packed_forward import CLASSES, ENCODERS, FAMILIES, GATED, VOCABULARY

LENGTHS = (3, 4, 7, 7, 7, 18, 20)
PREFIX = 9
NO_FLASH = {
    "head_of_12": LlamaConfig(**{**GATED, "hidden_size": 48}),
    "head_of_264": LlamaConfig(**GATED, head_dim=264),
}
"""Models whose heads are of a size that the kernel does not take."""
SPECIAL = {name: config_of(name) for name in ("gemma2", "gemma3_text", "modernbert")}
"""Models whose attention or layers are of another kind than those of `FAMILIES`."""
MODELS = FAMILIES | NO_FLASH | SPECIAL


class Case(NamedTuple):
    """How the examples of a pack become vectors."""

    pooling: str
    prefix: int
    recomputed: bool


CASES = (
    Case("last", PREFIX, False),
    Case("last", 0, True),
    Case("first", 0, False),
    Case("mean", PREFIX, False),
)


class Seen(NamedTuple):
    """Relative distances from the CPU in fp32, of logits and of all gradients of the bank."""

    fp32: tuple[float, float]
    bf16: tuple[float, float]
    bf16_of_cpu: tuple[float, float]
    flash_calls: int


def adapted_model(
    folder: Path, device: torch.device, dtype: torch.dtype, options: BackboneOptions, *, pooling: Pooling
) -> AdaptedModel:
    """A model of a folder, with adapters that do something."""
    spec = read_spec(folder)
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    layout = uniform_layout(sites, rank=4, head_shape=(CLASSES, spec.output_size))
    bank = AdapterBank(layout, scale=2.0, dtype=dtype, device=device, scalars=6, importance=False)
    bank.master.copy_(0.3 * torch.randn(layout.size, generator=torch.Generator().manual_seed(3)))
    bank.refresh()
    backbone = load_backbone(spec, options, dtype=dtype, env=DistEnv(0, 0, 1, 1, device))
    return AdaptedModel(backbone, bank, pooling=pooling, dropout=0.0, shared_inputs=spec.shared_inputs)


def some_pack(folder: Path, case: Case) -> tuple[Tensor, int]:
    """Token ids of a pack, and its prefix."""
    prefix = case.prefix if read_spec(folder).causal else 0
    draw = torch.Generator().manual_seed(1)
    return torch.randint(5, VOCABULARY, (prefix + sum(LENGTHS),), generator=draw), prefix


def logits_and_gradients(
    folder: Path, device: torch.device, dtype: torch.dtype, case: Case
) -> tuple[Tensor, Tensor]:
    options = BackboneOptions(activation_checkpointing=case.recomputed, packed=True)
    model = adapted_model(folder, device, dtype, options, pooling=case.pooling)
    ids, prefix = some_pack(folder, case)
    model.backbone.train()
    bank = model.bank
    bank.zero_grad()
    logits = model.packed_logits(ids, model.pack_places(prefix, LENGTHS))
    labels = torch.arange(len(LENGTHS), device=device) % CLASSES
    F.cross_entropy(logits, labels, reduction="sum").backward()
    bank.collect_grad()
    bank.finish_grad()
    return logits.detach().float().cpu(), bank.grad.float().cpu()


def distances(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> tuple[float, float]:
    of_logits, of_gradients = (
        float((one - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True)
    )
    return of_logits, of_gradients


def padded_logits(folder: Path, device: torch.device) -> tuple[list[Tensor], int]:
    """Logits of a batch with padding and one without, in fp32, and how often the host waited for them."""
    from tests.pretend.probe import Probe

    model = adapted_model(folder, device, torch.float32, BackboneOptions(), pooling="mean")
    model.backbone.train(False)
    draw, found = torch.Generator().manual_seed(1), []
    with torch.no_grad(), Probe() as probe:
        for lengths in (torch.tensor(LENGTHS), torch.tensor([20, 20])):
            ids = torch.randint(5, VOCABULARY, (len(lengths), 20), generator=draw)
            inputs = to_device(pinned((ids, attention_mask(lengths, 20), lengths)), device)
            found.append(probe.during("forward", model.padded_logits)(*inputs))
    return [logits.cpu() for logits in found], sum(probe.waits.get("forward", {}).values())


def compute_padded(folder: Path) -> dict[str, tuple[float, int]]:
    """How far each family is from the CPU, and how often the host waited."""
    seen = {}
    for name, config in FAMILIES.items():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder / name)
        expected, _ = padded_logits(folder / name, torch.device("cpu"))
        found, waits = padded_logits(folder / name, torch.device("cuda", 0))
        pairs = zip(found, expected, strict=True)
        seen[name] = max(float((one - other).norm() / other.norm()) for one, other in pairs), waits
    return seen


def write_model(config: PreTrainedConfig, folder: Path) -> Path:
    """A model of random weights, which bf16 holds exactly."""
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir()
    model.to(torch.bfloat16).float().save_pretrained(folder)
    return folder


def compute_all(folder: Path) -> dict[tuple[str, Case], Seen]:
    from tests.pretend import flash_kernel

    cpu, card, seen = torch.device("cpu"), torch.device("cuda", 0), {}
    for name, config in MODELS.items():
        write_model(config, folder / name)
        for case in CASES:
            exact = logits_and_gradients(folder / name, cpu, torch.float32, case)
            fp32 = logits_and_gradients(folder / name, card, torch.float32, case)
            flash_kernel.calls.clear()
            bf16 = logits_and_gradients(folder / name, card, torch.bfloat16, case)
            calls = len(flash_kernel.calls)
            of_cpu = logits_and_gradients(folder / name, cpu, torch.bfloat16, case)
            seen[name, case] = Seen(*(distances(one, exact) for one in (fp32, bf16, of_cpu)), calls)
    return seen


@pytest.fixture(scope="module")
def seen(cards, tmp_path_factory) -> dict[tuple[str, Case], Seen]:
    (value,) = cards.call(compute_all, tmp_path_factory.mktemp("families"))
    return value


def test_padded_logits_are_the_cpus_and_nobody_waits_for_them(cards, tmp_path):
    (seen,) = cards.call(compute_padded, tmp_path)
    assert set(seen) == set(FAMILIES)
    assert {name: found for name, found in seen.items() if found[0] > 1e-5 or found[1]} == {}


def test_every_family_is_tried():
    assert {config.model_type for config in FAMILIES.values()} < set(TARGETS)  # others: SPECIAL
    assert set(ENCODERS) < set(FAMILIES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.pooling}-{case.prefix}")
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_the_cpus(seen, name, case):
    found = seen[name, case]
    assert max(found.fp32) < 1e-5
    for ours, theirs in zip(found.bf16, found.bf16_of_cpu, strict=True):
        assert ours < 3 * theirs + 0.005  # rounding, which another order of sums changes


@pytest.mark.parametrize("name", MODELS)
def test_flash_attention_is_taken_where_the_kernel_takes_the_heads(seen, name):
    for case in CASES:
        assert (seen[name, case].flash_calls > 0) == (name not in (*NO_FLASH, "gemma2"))
