"""A backbone under ZeRO-3 in real processes: the dense model's gradients, from half of its weights."""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, LlamaConfig, OPTConfig, PreTrainedConfig

from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.batches import Batch, attention_mask
from lingo_ds.distributed import process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import BankLayout, uniform_layout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import BackboneSpec, read_spec
from lingo_ds.models.backbone.weight_files import WeightFiles
from lingo_ds.planning.plan import make_plan
from lingo_ds.planning.plan_inputs import Facts
from lingo_ds.training.losses import cross_entropy_sum
from lingo_ds.utils.resources import resource_path
from tests.ranks.spawn import run_ranks

CPU = torch.device("cpu")
RANK, CLASSES, SCALE = 4, 3, 2.0
VOCABULARY = 97  # odd sizes: ranges that two or four processes cannot share evenly

COMMON = {"vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 8, "num_attention_heads": 4}
CONFIGS = {
    "llama": LlamaConfig(
        **COMMON, intermediate_size=37, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=1
    ),
    "opt": OPTConfig(**COMMON, ffn_dim=37, word_embed_proj_dim=12, max_position_embeddings=64, dropout=0.1),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=24,
        n_layer=8,
        n_head=4,
        n_positions=64,
        n_inner=37,
        bos_token_id=0,
        eos_token_id=2,
    ),
}


def random_model(config: PreTrainedConfig, folder: Path) -> Path:
    """A model in which no two entries are alike, so that a range read from the wrong place is seen."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A random backbone per family, and a pretrained one (Llama) where that is at hand."""
    found = {name: random_model(config, tmp_path_factory.mktemp(name)) for name, config in CONFIGS.items()}
    real = Path(__file__).resolve().parents[3] / "shared" / "backbones" / "stories260k"
    return {**found, "pretrained": real} if real.is_dir() else found


# What each process does


def place(rank: int, world_size: int) -> DistEnv:
    env = DistEnv(rank, rank, world_size, world_size, CPU)
    process_group.start(env)
    return env


def new_layout(spec: BackboneSpec) -> BankLayout:
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    return uniform_layout(sites, rank=RANK, head_shape=(CLASSES, spec.output_size))


def zero_config(
    spec: BackboneSpec, layout: BankLayout, world_size: int, *, dtype: str, profile: dict | None = None
) -> dict:
    """DeepSpeed's settings as a run has them: a shipped profile, filled in by the plan."""
    config = RunConfig.model_validate(
        {"name": "zero", "backbone": {"path": "."}, "data": {"path": "."}, "rank_sampling": {"mode": "off"}}
    )
    facts = Facts(
        train_rows=64,
        dev_rows=8,
        test_rows=8,
        longest=16,
        shared_prefix=0,
        mean_tokens=16.0,
        backbone_parameters=spec.parameters,
        layer_parameters=spec.layer_parameters,
        layers=spec.layers,
        hidden_size=spec.hidden_size,
        ffn_size=spec.ffn_size,
        sites=len(layout.sites),
        bank_parameters=layout.size,
        head_parameters=layout.size - layout.adapter_size,
        compute_bytes=4,
        packable=False,
        causal=True,
        world_size=world_size,
        local_world_size=world_size,
        memory_bytes=2**34,
    )
    if profile is None:
        profile = json.loads(resource_path("ds_configs", "zero3_cpu").read_text())
        assert profile["zero_optimization"]["stage3_param_persistence_threshold"] == 0
    return make_plan(config, facts).deepspeed_config(profile, dtype=dtype)


class Reads(NamedTuple):
    """What one process read of a weight."""

    name: str
    start: int
    entries: int


class Loaded(NamedTuple):
    """A backbone on its shards, what was read for it, and its files."""

    backbone: object
    layout: BankLayout
    reads: list[Reads]
    files: list[WeightFiles]


def load_sharded(
    folder: Path,
    env: DistEnv,
    *,
    group_size: int,
    checkpointing: bool,
    dtype: torch.dtype = torch.float32,
    profile: dict | None = None,
    eight_bit: bool = False,
) -> Loaded:
    spec = read_spec(folder)
    layout = new_layout(spec)
    reads, files, read = [], [], WeightFiles.read_into

    def counted(self: WeightFiles, out: Tensor, name: str, start: int = 0) -> None:
        read(self, out, name, start)
        reads.append(Reads(name, start, len(out)))
        files[:] = [self]

    options = BackboneOptions(
        activation_checkpointing=checkpointing,
        ds_config=zero_config(
            spec,
            layout,
            env.world_size,
            dtype="bf16" if dtype == torch.bfloat16 else "fp32",
            profile=profile,
        ),
        shard_group=group_size,
        eight_bit=eight_bit,
    )
    WeightFiles.read_into = counted
    try:
        backbone = load_backbone(spec, options, dtype=dtype, env=env)
    finally:
        WeightFiles.read_into = read
    return Loaded(backbone, layout, reads, files)


def stored_entries(module: nn.Module) -> int:
    """Entries in all storage behind a module's parameters, counted without lingo_ds."""
    width = next(module.parameters()).element_size()
    tensors = [t for p in module.parameters() for t in (p.data, p.ds_tensor)]
    return (
        sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()) // width
    )


def partition_entries(module: nn.Module, group_size: int) -> int:
    """What one of `group_size` processes should hold: its share of every weight, rounded up."""
    return sum(-(-p.ds_numel // group_size) for p in module.parameters())


def new_bank(layout: BankLayout, dtype: torch.dtype = torch.float32) -> AdapterBank:
    """A bank in which every entry is at work: lam is not 0, so that P and Q have gradients."""
    bank = AdapterBank(layout, scale=SCALE, dtype=dtype, device=CPU, scalars=5, importance=False)
    bank.master.copy_(0.3 * torch.randn(layout.size, generator=torch.Generator().manual_seed(3)))
    bank.refresh()
    return bank


EXAMPLES = 9
LENGTHS = torch.tensor([16, 3, 9, 1, 12, 7, 16, 5, 11])
# Micro-batches by process: rows of the global batch; of unequal size, and fillers where one has fewer.
MICRO_BATCHES = {
    2: [[[0, 1, 2], [3, 4, 5, 6]], [[7], [8]]],
    4: [[[0, 1, 2], [3]], [[4], [5, 6]], [[7], []], [[8], []]],
}


def global_batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    input_ids = torch.randint(3, VOCABULARY, (EXAMPLES, 16), generator=generator)
    input_ids[torch.arange(16) >= LENGTHS[:, None]] = 0
    labels = torch.randint(0, CLASSES, (EXAMPLES,), generator=generator)
    mask = attention_mask(LENGTHS, 16)
    return Batch(input_ids, mask, LENGTHS, labels, torch.arange(EXAMPLES), torch.ones(EXAMPLES))


def micro_batch(batch: Batch, rows: list[int]) -> Batch:
    """The rows, padded to the longest of them; none: the first with weight 0."""
    weights = torch.ones(len(rows)) if rows else torch.zeros(1)
    index = torch.tensor(rows or [0])
    lengths = batch.lengths[index]
    input_ids = batch.input_ids[index, : int(lengths.max())]
    mask = attention_mask(lengths, input_ids.shape[1])
    return Batch(input_ids, mask, lengths, batch.labels[index], index, weights)


def dense_gradient(folder: Path, layout: BankLayout, master: Tensor, batch: Batch) -> list[Tensor]:
    """The same in plain torch on one process: transformers' model, one batch, autograd over named tensors."""
    plain = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    named = [[t.clone().requires_grad_() for t in layout.site(master, k)] for k in range(len(layout.sites))]
    head = layout.head(master).clone().requires_grad_()

    def add(_module: nn.Module, args: tuple[Tensor], output: Tensor, *, adapter: list[Tensor]) -> Tensor:
        p, lam, q = adapter
        return output + SCALE * (args[0] @ q.T @ torch.diag(lam) @ p)

    for site, adapter in zip(layout.sites, named, strict=True):
        plain.get_submodule(site.name).register_forward_hook(partial(add, adapter=adapter))
    mask = (torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]).long()
    hidden = plain(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
    logits = hidden[torch.arange(len(mask)), batch.lengths - 1] @ head.T
    tensors = [t for adapter in named for t in adapter] + [head]
    return list(torch.autograd.grad(F.cross_entropy(logits, batch.labels), tensors))


def accumulate(model: AdaptedModel, batch: Batch, micro_batches: list[list[int]], after_each) -> None:
    """Adds the micro-batches' share of a step's gradient to the bank, as the trainer does."""
    model.backbone.train()
    model.bank.zero_grad()
    for rows in micro_batches:
        part = micro_batch(batch, rows)
        loss = cross_entropy_sum(part.logits(model), part.labels, part.weights)
        (loss / EXAMPLES).backward()
        model.bank.collect_grad()
        after_each()
    model.bank.finish_grad()


def by_tensor(layout: BankLayout, flat: Tensor) -> list[Tensor]:
    """P, lam and Q of every site, then the head."""
    adapters = [t for k in range(len(layout.sites)) for t in layout.site(flat, k)]
    return [t.clone() for t in (*adapters, layout.head(flat))]


def sharded_gradient(model: AdaptedModel, env: DistEnv, batch: Batch, after_each) -> list[Tensor]:
    """One step's gradient over all processes."""
    accumulate(model, batch, MICRO_BATCHES[env.world_size][env.global_rank], after_each)
    process_group.all_reduce_(model.bank.reduce_buffer)
    return by_tensor(model.bank.layout, model.bank.grad)


def whole_gradient(model: AdaptedModel, master: Tensor, batch: Batch, world_size: int) -> list[Tensor]:
    """The same micro-batches, of all processes, through a whole copy on this one."""
    model.bank.master.copy_(master)
    model.bank.refresh()
    every = [rows for process in MICRO_BATCHES[world_size] for rows in process]
    accumulate(model, batch, every, lambda: None)
    return by_tensor(model.bank.layout, model.bank.grad)


def differences(ours: list[Tensor], theirs: list[Tensor]) -> tuple[float, float]:
    """Relative difference of the tensor that differs most, and of all entries together."""
    assert len(ours) == len(theirs)
    assert all(tensor.norm() > 0 for tensor in theirs)
    each = max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))
    flat_ours, flat_theirs = (torch.cat([t.flatten() for t in side]) for side in (ours, theirs))
    return each, float((flat_ours - flat_theirs).norm() / flat_theirs.norm())


def watch_peak(module: nn.Module, held) -> list[int]:
    """Notes what is held whenever a decoder layer's linear map runs, in the forward and the backward pass."""
    seen = []

    def note(_module: nn.Module, _args: tuple, output: Tensor) -> None:
        seen.append(held())
        if output.requires_grad:
            output.register_hook(lambda _grad: seen.append(held()))

    for inner in module.modules():
        if type(inner).__name__ in ("Linear", "Conv1D"):
            inner.register_forward_hook(note)
    return seen


def train_two_steps(env: DistEnv, folder: Path, *, group_size: int, checkpointing: bool) -> dict[str, float]:
    """Compares two steps' gradients with the dense model's, and looks at what is held at every turn.

    Returns:
        Relative differences (of the worst tensor, of all together) from plain torch and from a whole copy,
        and entries held: least, most, what they should be, most inside a pass.
    """
    loaded = load_sharded(folder, env, group_size=group_size, checkpointing=checkpointing)
    backbone, layout = loaded.backbone, loaded.layout
    module = backbone.module
    held = []

    def look() -> None:
        backbone.require_partitioned()
        held.extend([backbone.held_entries(), stored_entries(module)])

    look()
    inside = watch_peak(module, lambda: stored_entries(module))
    bank = new_bank(layout)
    model = AdaptedModel(backbone, bank, pooling="last", dropout=0.0)
    whole = load_backbone(read_spec(folder), BackboneOptions(), dtype=torch.float32, env=env)
    whole_model = AdaptedModel(whole, new_bank(layout), pooling="last", dropout=0.0)
    from_plain, from_whole = [], []
    for step in (1, 2):
        batch = global_batch(step)
        ours = sharded_gradient(model, env, batch, look)
        look()
        from_plain.append(differences(ours, dense_gradient(folder, layout, bank.master, batch)))
        from_whole.append(differences(ours, whole_gradient(whole_model, bank.master, batch, env.world_size)))
        with torch.no_grad():  # an evaluation, with another number of forwards than there were in training
            backbone.train(False)
            for rows in ([0, 1], [2, 3, 4], [5]):
                micro_batch(batch, rows).logits(model)
            backbone.release()
        look()
        bank.master.sub_(0.5 * bank.grad)
        bank.refresh()
    return {
        "plain": max(each for each, _ in from_plain),
        "plain_overall": max(overall for _, overall in from_plain),
        "whole": max(each for each, _ in from_whole),
        "least": min(held),
        "most": max(held),
        "expected": partition_entries(module, group_size),
        "inside": max(inside),
        "passes": len(inside),
        "layer": max(sum(p.ds_numel for p in m.parameters()) for m in decoder_layers(module)),
        "embedding": sum(
            p.ds_numel for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
        ),
        "entries": sum(p.ds_numel for p in module.parameters()),
    }


def decoder_layers(module: nn.Module) -> nn.ModuleList:
    return next(m for m in module.modules() if isinstance(m, nn.ModuleList))


def gradients(rank: int, world_size: int, folders: dict[str, Path], group_size: int) -> dict:
    env = place(rank, world_size)
    return {
        (family, checkpointing): train_two_steps(
            env, folder, group_size=group_size, checkpointing=checkpointing
        )
        for family, folder in folders.items()
        for checkpointing in (False, True)
    }


def what_was_read(rank: int, world_size: int, folder: Path, group_size: int) -> dict:
    """Which entries were read, how many bytes that took, and whether they are in place."""
    env, file = place(rank, world_size), folder / "model.safetensors"
    read_spec(folder)  # imports
    before = read_bytes()
    loaded = load_sharded(folder, env, group_size=group_size, checkpointing=False)
    read = read_bytes() - before
    module = loaded.backbone.module
    return {
        "reads": loaded.reads,
        "parameters": {name: p.ds_numel for name, p in module.named_parameters()},
        "read": read,
        "size": file.stat().st_size,
        "blocks": len({p.ds_tensor.untyped_storage().data_ptr() for p in module.parameters()}),
        "values": {name: p.ds_tensor.clone() for name, p in module.named_parameters() if p.numel() < 10**5},
    }


def read_bytes() -> int:
    """Bytes that this process has read so far, whatever they are, from disk or from memory (Linux)."""
    line = Path("/proc/self/io").read_text().splitlines()[0]
    return int(line.removeprefix("rchar:"))


def buffers_in_bf16(rank: int, world_size: int, folder: Path) -> dict:
    """The sharded model's buffers and hidden states in bf16, and a plainly built model's."""
    env = place(rank, world_size)
    loaded = load_sharded(folder, env, group_size=world_size, checkpointing=False, dtype=torch.bfloat16)
    plain = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    batch = global_batch(1)
    model = AdaptedModel(
        loaded.backbone, new_bank(loaded.layout, torch.bfloat16), pooling="last", dropout=0.0
    )
    maps = [loaded.backbone.module.get_submodule(site.name) for site in loaded.layout.sites]
    kept = []

    def keep(value: Tensor) -> Tensor:
        """Notes for each tensor that the backward pass keeps whether it is, or views, a gathered weight."""
        memory = value.untyped_storage().data_ptr()
        kept.append(value.ndim == 2 and any(memory == m.weight.untyped_storage().data_ptr() for m in maps))
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        sharded_gradient(model, env, batch, loaded.backbone.require_partitioned)
    model.detach()  # the frozen model by itself
    with torch.no_grad():
        loaded.backbone.train(False)
        ours = loaded.backbone.hidden_states(batch.input_ids[:1], None)
        theirs = plain(input_ids=batch.input_ids[:1]).last_hidden_state
    return {
        "ours": dict(loaded.backbone.module.named_buffers()),
        "theirs": dict(plain.named_buffers()),
        "hidden": (ours, theirs),
        "kept": (len(kept), sum(kept)),
        "weights": {p.ds_tensor.dtype for p in loaded.backbone.module.parameters()},
    }


class Seen(NamedTuple):
    """What one process reports."""

    read: dict
    bf16: dict
    gradients: dict


def everything(rank: int, world_size: int, folders: dict[str, Path], wide: Path, group_size: int) -> Seen:
    """All that is looked at, in one set of processes: importing the libraries takes longer than the rest."""
    return Seen(
        what_was_read(rank, world_size, wide, group_size),
        buffers_in_bf16(rank, world_size, folders.get("pretrained", folders["llama"])),
        gradients(rank, world_size, folders, group_size),
    )


# The tests


def check_gradients(results: list[dict], group_size: int) -> None:
    for by_case in results:
        for family, _ in by_case:  # a layer's forward is run once more
            assert by_case[family, True]["passes"] > 1.2 * by_case[family, False]["passes"]
        for case, seen in by_case.items():
            # A pretrained model's attention lets float32's rounding grow: there plain torch's own gradients
            # of single tensors differ by 1e-4 with the micro-batches.
            assert seen["whole"] < 1e-5, (case, seen)
            assert seen["plain_overall"] < 1e-5, (case, seen)
            assert seen["plain"] < (1e-5 if case[0] != "pretrained" else 1e-3), (case, seen)
            # Its share and no more: before the first step, between and after steps, after evaluations.
            assert seen["least"] == seen["most"] == seen["expected"], (case, seen)
            assert seen["expected"] < 1.01 * seen["entries"] / group_size + 100, (case, seen)
            # Inside a pass: the share, four layers and the embeddings at most, never the whole model.
            assert seen["expected"] < seen["inside"], (case, seen)
            assert seen["inside"] <= seen["expected"] + 4 * seen["layer"] + seen["embedding"], (
                case,
                seen,
            )


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory) -> Path:
    """26 MB, most of it in one weight: enough to tell half a file from a whole one."""
    config = LlamaConfig(
        vocab_size=100001,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=64,
    )
    return random_model(config, tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def two(folders, wide_llama) -> list[Seen]:
    """What two processes see that share one copy."""
    return run_ranks(everything, 2, folders, wide_llama, 2, timeout=400)


def test_gradients_equal_the_dense_models_from_half_of_the_weights(two, folders):
    assert len(two[0].gradients) == 2 * len(folders)
    check_gradients([seen.gradients for seen in two], 2)


def test_a_process_reads_its_own_range_only(two, wide_llama):
    check_reads([seen.read for seen in two], wide_llama, 2)


def test_buffers_keep_full_precision_and_bf16_computes_as_the_dense_model(two):
    for _, bf16, _ in two:
        assert "rotary_emb.inv_freq" in bf16["theirs"]
        assert bf16["ours"].keys() == bf16["theirs"].keys()
        for name, buffer in bf16["theirs"].items():
            torch.testing.assert_close(bf16["ours"][name], buffer, rtol=0, atol=0)
        assert bf16["weights"] == {torch.bfloat16}
        count, weights = bf16["kept"]
        assert count > 50 and not weights  # else all of the model stays gathered until the backward pass
        torch.testing.assert_close(*bf16["hidden"], rtol=0, atol=0)


def check_reads(results: list[dict], folder: Path, group_size: int) -> None:
    whole = AutoModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    for rank, seen in enumerate(results):
        share = {name: -(-numel // group_size) for name, numel in seen["parameters"].items()}
        place_in_group = rank % group_size
        assert sorted(read.name for read in seen["reads"]) == sorted(share)  # each weight once
        for read in seen["reads"]:
            numel = seen["parameters"][read.name]
            assert read.start == place_in_group * share[read.name]
            assert read.entries == max(0, min(share[read.name], numel - read.start)), read
        for name, values in seen["values"].items():
            own = whole[name].flatten()[place_in_group * share[name] :][: share[name]]
            assert torch.equal(values[: len(own)], own), name
            assert not values[len(own) :].any(), name
        assert seen["blocks"] == 1  # read to where they are kept; DeepSpeed would have made one for each
        assert (
            seen["read"] < (1 / group_size + 0.2) * seen["size"]
        )  # with modules that are imported meanwhile
        assert seen["read"] > (1 / group_size - 0.1) * seen["size"]  # else the measure is blind


@pytest.mark.slow
@pytest.mark.parametrize("group_size", [2, 4])
def test_four_processes_in_groups(folders, wide_llama, group_size):
    seen = run_ranks(everything, 4, folders, wide_llama, group_size, timeout=500)
    check_gradients([one.gradients for one in seen], group_size)
    check_reads([one.read for one in seen], wide_llama, group_size)
