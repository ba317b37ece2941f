"""The kinds of hostile input: a new one is a strategy of cases, a way to run them, and a line in `kinds`."""

import gzip
import hashlib
import io
import json
import shutil
import tempfile
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from lingo_ds.commands.cli import main
from lingo_ds.config.suite_config import load_runs
from lingo_ds.data.readers.content import BGZIP_END
from lingo_ds.data.task import make_task
from lingo_ds.distributed.process_group import DistEnv, detect
from lingo_ds.export.adapter_card import BackboneCard, Card, SavedAdapter
from lingo_ds.export.adapter_folder import load_adapter, save_adapter
from lingo_ds.export.open_adapter import open_adapter
from lingo_ds.export.peft_format import ADAPTER_WEIGHTS, CARD, CONFIG
from lingo_ds.models.adapters.layout import uniform_layout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.builtin import character_tokenizer
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.backbone.weight_files import weights_fingerprint
from lingo_ds.training.build_model import build_model
from lingo_ds.training.checkpoint import BANK, STATE, SUMS
from lingo_ds.training.resume import find_start
from lingo_ds.training.session import Session
from lingo_ds.training.setup import RunSetup, prepare
from tests.fuzz.harness import Blob, Case, Kind, Place, plan, status_of
from tests.fuzz.mutations import (
    any_file,
    damaged,
    edited_json,
    edited_safetensors,
    garbage,
    json_bytes,
    odd_text,
    odd_value,
    other_tensors,
)

RECIPE = {
    "name": "case",
    "backbone": {"path": "builtin:tiny", "dtype": "fp32"},
    "data": {"path": "builtin:promoters", "prefix": "DNA {sequence} is", "max_length": 100},
    "adapter": {"rank": 4, "targets": ["q_proj", "v_proj"]},
    "rank_sampling": {"mode": "exact", "target_rank": 2, "interval": 5, "t_init": 0.1, "t_final": 20},
    "train": {
        "global_batch_size": 8,
        "max_steps": 100,
        "num_epochs": 2,
        "learning_rate": 1e-3,
        "adam_betas": [0.9, 0.99],
        "eval_steps": 50,
        "warmup": 0.1,
    },
    "zero": {"stage": 0},
}
CSV = b"sequence,label\nACGTACGTAC,0\nTTTTACGTAA,1\nGGGGACGTNN,0\nACCA,1\n"
SPLITS = ("train.csv", "dev.csv", "test.csv")
LAST = 8
"""Steps of the run that the good checkpoint belongs to."""

CPU = torch.device("cpu")
ALONE = DistEnv(0, 0, 1, 1, CPU)
CODE = b"open('owned', 'w').close()\nimport os\nos.system('true')\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
PICKLE = b"\x80\x04cposix\nsystem\nX\x04\x00\x00\x00true\x85R."


def write_good(folder: Path) -> None:
    """The good inputs that cases are made from: `data`, `backbone`, `adapter`, `checkpoint`, `sequences`."""
    (folder / "data").mkdir()
    for split in SPLITS:
        (folder / "data" / split).write_bytes(CSV)
    backbone = folder / "backbone"
    tokenizer = character_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    spec = read_spec(backbone)
    sites = choose_sites(spec.linear_maps, targets=["q_proj"], family_default=())
    layout = uniform_layout(sites, rank=2, head_shape=(2, 8), has_lam=True)
    task = make_task("case", classes=2, template=None, domain=None, max_length=64)
    whose = BackboneCard(path=str(backbone), fingerprint=weights_fingerprint(backbone))
    card = Card(task=task, pooling="last", backbone=whose, step=1, at_budget=True, dev={"mcc": 0.5})
    adapter = SavedAdapter(layout, torch.linspace(-1, 1, layout.size), 4.0, 2, card)
    save_adapter(folder / "adapter", adapter, spec=spec, backbone_path=str(backbone), settings={})
    (folder / "sequences").mkdir()
    table = pa.table({"id": ["a", "b", "c"], "sequence": ["ACGT", "TTGACA", "NNAC"]})
    pq.write_table(table, folder / "sequences/in.parquet")
    (folder / "sequences/genome.fa").write_bytes(b">c\nACGTA\nCGT\n")
    write_checkpoint(folder)
    _setup(folder)


# -- config and command line

SETTINGS = (
    "name",
    "seed",
    "output_dir",
    "backbone",
    "backbone.path",
    "backbone.revision",
    "backbone.dtype",
    "data",
    "data.path",
    "data.sequence_column",
    "data.prefix",
    "data.domain",
    "data.max_length",
    "data.cache_dir",
    "data.label_column",
    "data.class_names",
    "data.pair_column",
    "data.only_task",
    "data.one_hot_order",
    "data.dev_fraction",
    "data.split_seed",
    "data.intervals",
    "data.intervals.genome",
    "data.intervals.window",
    "task",
    "task.kind",
    "task.labels",
    "task.class_weights",
    "task.focal_gamma",
    "task.threshold",
    "selection.metric",
    "data.tokens",
    "adapter.method",
    "adapter.rank",
    "adapter.alpha",
    "adapter.targets",
    "rank_sampling",
    "rank_sampling.mode",
    "rank_sampling.target_rank",
    "rank_sampling.interval",
    "rank_sampling.t_init",
    "rank_sampling.t_final",
    "rank_sampling.rho",
    "train.global_batch_size",
    "train.micro_batch_size",
    "train.micro_batch_tokens",
    "train.num_epochs",
    "train.max_steps",
    "train.warmup",
    "train.adam_betas",
    "train.eval_steps",
    "train.eval_epochs",
    "zero.stage",
    "zero.shard_group",
    "zero.hpz",
    "zero.quantized_weights",
    "zero.profile",
    "checkpoint.resume",
    "seeds",
    "grid",
    "grid.train.warmup",
    "search",
    "search.at",
    "concurrent",
    "no.such.thing",
)
TRICKS = (
    "!!python/object/apply:os.system ['touch owned']",
    "!!python/name:os.system",
    "!!python/module:os",
    "=",
    "<<",
    "!!binary 'x'",
    "!!set {a, b}",
    "!!timestamp 2024-13-45",
    "2024-13-45",
    "!!int x",
    "!!float x",
    "!!bool x",
    "!!null x",
    "!!omap [a]",
    "!!pairs [a]",
    "!<tag:yaml.org,2002:int> 0x",
    "&a [*a]",
    "&a {b: *a}",
    "*nowhere",
    "{<<: {name: x}}",
    "{<<: 3}",
    "? [a]\n: b",
    "{[a]: b}",
    "{{}: b}",
    "{a, a: 1, a: 2}",
    "\\x",
    '"\\ud800"',
    '"\\U0010ffff"',
    '"\\U00110000"',
    '"\\0"',
    "1_000",
    "0x10",
    ".nan",
    ".inf",
    "-.inf",
    "1e999999999",
    "9" * 5000,
    "[" * 3000,
    "[" * 300 + "]" * 300,
    "{a: " * 500,
    "- " * 5000,
    "%YAML 9.9\n---\n",
    "---\n---\n",
    "...\n",
    "\t- x",
    "|\n\tx",
    ">-99\n x",
    "'",
    '"',
    "# only a comment",
    "\u2028",
    "\u0085",
    "\ufeff",
    "x: " * 3,
    "! x",
    "!x y",
    "\x07",
    "&a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]",
)
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)
)
GOOD_RECIPE = Blob(yaml.safe_dump(RECIPE, sort_keys=False).encode())


def _yaml_of(document: bytes) -> bytes:
    """The JSON document as YAML in block style, where a YAML writer can write it."""
    return yaml.safe_dump(json.loads(document), allow_unicode=True).encode(errors="surrogatepass")


@st.composite
def _tricked(draw: st.DrawFn) -> bytes:
    """A good recipe with a trick in place of a value, or as a line or block of its own."""
    lines = GOOD_RECIPE.decode().splitlines()
    place, trick = draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from((*TRICKS, LAUGHS)))
    key = lines[place].partition(":")[0]
    lines[place] = draw(
        st.sampled_from((f"{key}: {trick}", trick, f"{lines[place]}\n{trick}", f"{trick}: 1"))
    )
    return "\n".join(lines).encode(errors="surrogatepass")


recipes = st.one_of(
    edited_json(Blob(json_bytes(RECIPE))).map(_yaml_of),
    edited_json(Blob(json_bytes(RECIPE))),
    _tricked(),
    any_file(GOOD_RECIPE),
    st.builds(
        lambda codec: GOOD_RECIPE.decode().encode(codec), st.sampled_from(("utf-16", "utf-32", "utf-8-sig"))
    ),
    st.builds(lambda n: b"".join(b"k%d: 1\n" % k for k in range(n)), st.sampled_from((100, 3000, 30_000))),
)
_override = st.builds(
    lambda key, value: f"{key}={value}",
    st.sampled_from(SETTINGS),
    st.sampled_from(TRICKS) | odd_text | odd_value.map(lambda value: json_bytes(value).decode()),
)
overrides = st.lists(_override | odd_text.filter(lambda text: not text.startswith("-")), max_size=3).map(
    lambda words: tuple(word.replace("cache_dir=/", "cache_dir=") for word in words if word)
)
config_cases = st.builds(
    lambda recipe, settings: Case({"run.yaml": recipe}, settings), recipes, overrides | st.just(())
) | st.builds(lambda settings: Case({"run.yaml": GOOD_RECIPE}, settings), overrides)


def run_config(case: Case, place: Place) -> int:
    return plan(place.inputs / "run.yaml", *case.settings)


# -- labelled sequences

_field = st.sampled_from(
    (
        "ACGT",
        "acgtn",
        "ACGU",
        "",
        " ",
        "0",
        "1",
        "2",
        "-1",
        "1e9",
        "0.5",
        "nan",
        "1e400",
        "9" * 400,
        "\u0663",
        "\uff11",
        "+1",
        "0x1",
        "\uff21\uff23\uff27\uff34",
        "ACG\u0000T",
        "AC\nGT",
        "AC\rGT",
        'A"C',
        '"ACGT"',
        '"AC,GT"',
        '"AC\nGT"',
        '"AC',
        "AC\x1b[2JGT",
        "X" * 90_000,
        "A" * 200_000,
        "-",
        "*",
        "é",
        "\u2028",
        "\ufeff",
        "=cmd|'/C calc'!A0",
        "True",
        "null",
    )
)


_header = st.sampled_from(
    (
        [],
        ["label", "sequence"],
        ["sequence"],
        [""] * 3,
        ["sequence", "sequence", "label"],
        [" sequence", "label "],
    )
) | st.lists(odd_text, max_size=3)
_odd_row = (
    st.lists(_field, min_size=2, max_size=2) | st.lists(_field, max_size=4) | st.lists(odd_text, max_size=3)
)
_ODDITIES = ("header", "rows", "rows", "wide", "many", "ends", "separator", "codec", "gzip", "tail")


@st.composite
def _table(draw: st.DrawFn) -> bytes:
    """A CSV that is odd in up to three ways: header, fields, line ends, separators, encodings, its size."""
    odd = draw(st.sets(st.sampled_from(_ODDITIES), max_size=3))
    header = draw(_header) if "header" in odd else ["sequence", "label"]
    rows = [["ACGT", "0"], ["tttn", "1"], ["A" * draw(st.integers(1, 200)), "1"]]
    if "rows" in odd:
        for _ in range(draw(st.integers(1, 3))):
            rows.insert(draw(st.integers(0, len(rows))), draw(_odd_row))
    if "wide" in odd:
        header, rows = [*header, *map(str, range(20_000))], [[*row, *["x"] * 20_000] for row in rows]
    elif "many" in odd:
        rows *= 300 if sum(len(field) for row in rows for field in row) < 10_000 else 2
    end = draw(st.sampled_from(("\r\n", "\r", "\n\n", "\x0b", "\u2028"))) if "ends" in odd else "\n"
    separator = draw(st.sampled_from((";", "\t", ", ", ",,"))) if "separator" in odd else ","
    tail = draw(st.sampled_from((end, '"', "\0", "x"))) if "tail" in odd else ""
    text = end.join(separator.join(fields) for fields in [header, *rows]) + tail
    codec = (
        draw(st.sampled_from(("utf-8-sig", "utf-16", "latin-1", "cp1252", "utf-7")))
        if "codec" in odd
        else "utf-8"
    )
    raw = text.encode(codec, errors="replace")
    return gzip.compress(raw, mtime=0) if "gzip" in odd else raw


_csv = _table() | _table() | any_file(CSV)

BED = b"chromosome\tstart\tend\tsplit\tstrand\tlabel\n" + b"".join(
    b"c\t%d\t%d\t%s\t+\t%d\n" % (k, k + 5, (b"train", b"valid", b"test")[k // 4], k % 2) for k in range(12)
)
JSON_LINE = b'{"sequence": "A", "label": 0}\n'
GENOME = b">c one\n" + b"ACGTNacgtn\n" * 9 + b">d\nACGT\n"
_bed_line = (
    st.sampled_from(
        (
            "c",
            "c\t1",
            "c 1 2 train + 1",
            "c\t1\t2\ttrain\t+\t1",
            "c\t2\t1\ttrain\t+\t1",
            "e\t1\t2\ttrain\t+\t1",
            "c\t1\t999\ttest\t-\t0",
            "c\t-1\t2\ttest\t-\t0",
            "c\t1\t2\tx\t?\t0",
            f"c\t1\t{'9' * 5000}\ttest\t+\t1",
            "track x",
            "#",
            "browser",
            "\t\t",
            "\u0661\t\u0662\t\u0663",
            "chr\tstart\tend",
            "c\t1\t2\ttrain\t+\t\x1b[2J",
        )
    )
    | odd_text
)


@st.composite
def _bed(draw: st.DrawFn) -> bytes:
    """A BED file with a few odd lines."""
    lines = BED.decode().splitlines()
    for _ in range(draw(st.integers(0, 3))):
        lines.insert(draw(st.integers(0, len(lines))), draw(_bed_line))
    return "\n".join(lines).encode(errors="replace")


def _arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.eye(4)[np.arange(40).reshape(4, 10) % 4], y=np.arange(4)[:, None] % 2)
    return file.getvalue()


_from_genome = (
    "data.path=../../../inputs/x.bed",
    "data.intervals.genome=../../../inputs/g.fa",
)
_other_formats = st.one_of(
    st.builds(
        Case,
        st.fixed_dictionaries({"x.bed": _bed() | any_file(BED), "g.fa": st.just(GENOME)}),
        st.sampled_from((_from_genome, (*_from_genome, "data.intervals.negatives=1"))),
    ),
    st.builds(
        Case, st.fixed_dictionaries({"x.bed": st.just(BED), "g.fa": any_file(GENOME)}), st.just(_from_genome)
    ),
    st.builds(
        Case,
        st.fixed_dictionaries({"x.npz": any_file(_arrays())}),
        st.just(("data.path=../../../inputs/x.npz",)),
    ),
    st.builds(
        Case,
        st.fixed_dictionaries({"x.mat": any_file(_arrays())}),
        st.just(("data.path=../../../inputs/x.mat",)),
    ),
    st.builds(
        Case,
        st.fixed_dictionaries({"x.jsonl": _table() | any_file(JSON_LINE)}),
        st.just(("data.path=../../../inputs/x.jsonl",)),
    ),
)
data_cases = _other_formats | st.builds(
    Case,
    st.dictionaries(st.sampled_from(SPLITS), _csv, min_size=1)
    | _table().map(lambda table: dict.fromkeys(SPLITS, table)),
    st.sampled_from(
        ((),) * 4
        + (("data.sequence_column=label",), ("data.label_column=",), ("data.max_length=1",))
        + (("task.kind=multilabel",), ("task.kind=regression",), ("task.labels=[a, b]",))
    )
    | st.just(())
    | odd_text.map(lambda text: (f"data.sequence_column={text}",))
    | odd_text.map(lambda text: ("data.prefix=" + json.dumps(text + "{sequence}"),)),
)


def _plan_here(place: Place, **paths: Path) -> tuple[Path, list[str]]:
    """A good recipe in the working directory, and overrides that point it to other inputs."""
    config = place.work / "run.yaml"
    config.write_bytes(GOOD_RECIPE)
    return config, [f"{name}.path={json.dumps(str(path))}" for name, path in paths.items()]


def run_data(case: Case, place: Place) -> int:
    config, settings = _plan_here(place, data=place.inputs)
    return plan(config, *settings, *case.settings)


# -- backbone folders


BACKBONE = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def backbone_cases(good: Path) -> st.SearchStrategy[Case]:
    """Folders in which config, weights, their index, or the tokenizer is odd, or code lies beside them."""
    config, weights, tokenizer, settings = (Blob((good / name).read_bytes()) for name in BACKBONE)
    numbers = st.sampled_from((0, -1, 1, 3, 2**20, 2**31, 2**40, 2**62, 1e9, float("nan"), "8", None))
    kinds = st.sampled_from(
        (
            "gpt2",
            "bert",
            "opt",
            "t5",
            "clip",
            "esm",
            "phi",
            "mamba",
            "mixtral",
            "whisper",
            "gemma3",
            "bloom",
            "",
            "x/y",
            "\x1b[2J",
        )
    )
    odd_weights = edited_safetensors(weights) | other_tensors(weights)
    files = st.one_of(
        st.fixed_dictionaries({"config.json": any_file(config, edited_json(config))}),
        st.fixed_dictionaries({"config.json": edited_json(config, values=numbers)}),
        kinds.map(lambda kind: {"config.json": json_bytes({**json.loads(config), "model_type": kind})}),
        st.fixed_dictionaries(
            {"model.safetensors": any_file(weights, edited_safetensors(weights), other_tensors(weights))}
        ),
        st.fixed_dictionaries({"model.safetensors": odd_weights}),
        st.fixed_dictionaries({"model.safetensors.index.json": _odd_index()}),
        st.fixed_dictionaries({"tokenizer.json": any_file(tokenizer, edited_json(tokenizer))}),
        st.fixed_dictionaries({"tokenizer_config.json": any_file(settings, edited_json(settings))}),
        st.fixed_dictionaries({"config.json": _odd_claims(config)}),
        *_strangers_files(config, settings),
    )
    return files.map(Case)


def _odd_claims(config: bytes) -> st.SearchStrategy[bytes]:
    """Configs that claim to be quantised, to have experts or code of their own, in odd words."""
    names = st.sampled_from(
        (
            "quantization_config",
            "num_experts",
            "auto_map",
            "is_encoder_decoder",
            "text_config",
            "vision_config",
        )
    )
    inner = st.dictionaries(
        st.sampled_from(("quant_method", "bits", "load_in_4bit", "AutoModel", "AutoConfig", "num_experts")),
        odd_value,
        max_size=3,
    )
    claims = st.dictionaries(names, inner | odd_value, min_size=1, max_size=3)
    return claims.map(lambda claimed: json_bytes(json.loads(config) | claimed))


def _odd_index() -> st.SearchStrategy[bytes]:
    """Indices of weights that name odd places."""
    keys = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    place = st.sampled_from(
        (
            "model.safetensors",
            "../../etc/passwd",
            "/etc/passwd",
            "../x.safetensors",
            "pytorch_model.bin",
            "",
            ".",
            "sub/x",
        )
    )
    index = st.dictionaries(st.sampled_from(keys) | odd_text, place | odd_value, max_size=4).map(
        lambda weight_map: json_bytes({"metadata": {}, "weight_map": weight_map})
    )
    return any_file(index_of(keys), index)


def _strangers_files(config: bytes, settings: bytes) -> list[st.SearchStrategy[dict[str, bytes | str]]]:
    """Code, pickles, and odd files that libraries look for beside a model."""
    auto_map = {name: "code.Owned" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")}
    own_tokenizer = {**json.loads(settings), "auto_map": {"AutoTokenizer": ["code.Owned"] * 2}}
    with_code = st.sampled_from(("llama", "unheard", "gpt2")).map(
        lambda kind: {
            "config.json": json_bytes({**json.loads(config), "auto_map": auto_map, "model_type": kind}),
            "tokenizer_config.json": json_bytes(own_tokenizer),
            "code.py": CODE,
            "modeling_llama.py": CODE,
        }
    )
    others = ("pytorch_model.bin", "model.pt", "tokenizer.model", "x.safetensors", "m.gguf", "tf_model.h5")
    pickles = st.sampled_from(others).map(lambda name: {"model.safetensors": "missing", name: PICKLE})
    vocabularies = st.sampled_from(("tokenizer.model", "vocab.json", "vocab.txt", "x.tiktoken", "merges.txt"))
    unread = st.builds(
        lambda name, data: {"tokenizer.json": "missing", name: data}, vocabularies, any_file(b"\n\x02{}")
    )
    pointers = st.sampled_from(BACKBONE).map(lambda name: {name: POINTER})
    names = st.sampled_from(
        (
            "special_tokens_map.json",
            "added_tokens.json",
            "generation_config.json",
            "chat_template.jinja",
            "x.safetensors",
            "adapter_config.json",
            "vocab.json",
            "merges.txt",
            "tokenizer.model",
        )
    )
    beside = st.dictionaries(names, any_file(b"{}") | edited_json(settings), min_size=1, max_size=2)
    return [with_code, pickles, unread, pointers, beside]


def index_of(keys: list[str]) -> bytes:
    """A good index of weights that all lie in one file."""
    return json_bytes({"metadata": {}, "weight_map": dict.fromkeys(keys, "model.safetensors")})


def run_backbone(case: Case, place: Place) -> int:
    """Plans with the backbone; where that is possible, loads its weights."""
    config, settings = _plan_here(place, data=place.good / "data", backbone=place.inputs)

    def load() -> None:
        load_backbone(read_spec(place.inputs), BackboneOptions(), dtype=torch.float32, env=ALONE)

    return plan(config, *settings, "data.max_length=null") or status_of(load)


# -- adapter folders


def adapter_cases(good: Path) -> st.SearchStrategy[Case]:
    """Folders in which a card, PEFT's settings or the weights are odd."""
    names = (CARD, CONFIG, ADAPTER_WEIGHTS)
    card, config, weights = (Blob((good / name).read_bytes()) for name in names)
    files = st.one_of(
        st.fixed_dictionaries({CARD: any_file(card, edited_json(card))}),
        st.fixed_dictionaries({CONFIG: any_file(config, edited_json(config))}),
        st.fixed_dictionaries({CARD: edited_json(card) | damaged(card)}),
        st.fixed_dictionaries({CONFIG: edited_json(config) | garbage}),
        st.fixed_dictionaries(
            {ADAPTER_WEIGHTS: any_file(weights, edited_safetensors(weights), other_tensors(weights))}
        ),
        st.fixed_dictionaries({ADAPTER_WEIGHTS: edited_safetensors(weights) | other_tensors(weights)}),
        st.sampled_from(names).map(
            lambda name: {ADAPTER_WEIGHTS: "missing", "adapter_model.bin": PICKLE, name: PICKLE}
        ),
    )
    return files.map(Case)


def run_adapter(case: Case, place: Place) -> int:
    """Opens the folder by its own backbone, then with the good one, whatever the card says."""
    backbone = place.good / "backbone"
    first = status_of(lambda: open_adapter(place.inputs, backbone=None, cache=place.work / "cache"))
    return first or status_of(lambda: load_adapter(place.inputs, read_spec(backbone)))


# -- checkpoints


def write_checkpoint(folder: Path) -> None:
    """A run of a few steps on the good inputs, and its last checkpoint as `checkpoint`."""
    with tempfile.TemporaryDirectory() as out:
        config = Path(out) / "run.yaml"
        config.write_bytes(_checkpoint_recipe(folder, Path(out) / "run"))
        assert main(["train", "--config", str(config)]) == 0
        shutil.copytree(Path(out) / f"run/checkpoints/step-{LAST:08d}", folder / "checkpoint")


def _checkpoint_recipe(good: Path, out: Path) -> bytes:
    settings = RECIPE | {
        "output_dir": str(out),
        "backbone": {"path": str(good / "backbone"), "dtype": "fp32"},
        "data": {"path": str(good / "data"), "cache_dir": str(good / "cache")},
        "rank_sampling": {"target_rank": 2, "interval": 2, "t_init": 1, "t_final": 4},
        "train": {"global_batch_size": 2, "max_steps": LAST, "learning_rate": 1e-3, "eval_steps": LAST},
        "checkpoint": {"every": LAST // 2},
    }
    return json_bytes(settings)


@cache
def _setup(good: Path) -> RunSetup:
    """The run that the good checkpoint belongs to; made before the first case, since it may write."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.yaml").write_bytes(_checkpoint_recipe(good, Path(folder)))
        return prepare(load_runs(Path(folder) / "run.yaml"), detect())


def checkpoint_cases(good: Path) -> st.SearchStrategy[Case]:
    """Folders in which state, tensors or sums are odd; the sums of a stranger's checkpoint fit."""
    whole = {name: (good / name).read_bytes() for name in (STATE, BANK, SUMS)}
    state, bank, sums = (Blob(whole[name]) for name in (STATE, BANK, SUMS))

    def seal(files: dict[str, bytes]) -> dict[str, bytes]:
        found = whole | files
        lines = [f"{hashlib.sha256(found[name]).hexdigest()}  {name}\n" for name in (STATE, BANK)]
        return files | {SUMS: "".join(lines).encode()}

    odd_bank = edited_safetensors(bank) | other_tensors(bank)
    files = st.one_of(
        st.fixed_dictionaries({STATE: edited_json(state)}).map(seal),
        st.fixed_dictionaries({STATE: edited_json(state)}).map(seal),
        st.fixed_dictionaries({STATE: damaged(state) | garbage}).map(seal),
        st.fixed_dictionaries({BANK: odd_bank | damaged(bank)}).map(seal),
        st.fixed_dictionaries({STATE: any_file(state)}),
        st.fixed_dictionaries({BANK: any_file(bank)}),
        st.fixed_dictionaries({SUMS: any_file(sums)}),
        st.just({BANK: PICKLE, STATE: PICKLE}).map(seal),
    )
    return files.map(Case)


def run_checkpoint(case: Case, place: Place) -> int:
    """Takes the checkpoint up, into a run that would go on from it."""
    setup = _setup(place.good)
    settings = {"output_dir": place.work / "run"}
    settings["checkpoint"] = setup.config.checkpoint.model_copy(update={"resume": str(place.inputs)})
    setup = replace(setup, config=setup.config.model_copy(update=settings))

    def resume() -> None:
        start = find_start(setup)
        Session(start.setup, build_model(start.setup)).resume(start.checkpoint)

    return status_of(resume)


# -- sequences to predict

FASTA = b">a first\nACGT\nACGTNN\n>b\nttgaca\n>c\nAC\n"
_fasta_line = (
    st.sampled_from(
        (
            ">",
            ">x",
            "> x",
            ">x\ty",
            "ACGT",
            "acgtn",
            "RYKM",
            "",
            "  ",
            ";comment",
            "ACG T",
            "AC>GT",
            "ACGU",
            "A*C-",
            "1",
            "é",
            "\u2028",
            "\ufeff",
            ">\x1b[2J",
            "\x00",
            "@x",
            "+",
            "A" * 100_000,
            ">" + "n" * 10_000,
        )
    )
    | odd_text
)


@st.composite
def _fasta(draw: st.DrawFn) -> bytes:
    """A FASTA file with a few odd lines, line ends or encodings."""
    lines = FASTA.decode().splitlines()
    for _ in range(draw(st.integers(0, 4))):
        lines.insert(draw(st.integers(0, len(lines))), draw(_fasta_line))
    end = draw(st.sampled_from(("\n", "\n", "\r\n", "\r", "\n\n")))
    codec = draw(st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")))
    return (end.join(lines) + end).encode(codec, errors="replace")


VCF = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\nc\t2\t.\tC\tG,<DEL>\nc\t5\tx\tA\tAC\n"
BED = b"c\t0\t4\nc\t2\t8\tname\t0\t-\n"
PEAKS = b"c\t0\t4\tp\t0\t.\t5\t3\t2\t1\nc\t2\t8\tq\t0\t-\t5\t3\t2\t5\n"
GENOME_LINES = b">c one\nACGTA\nCGT\n\n>d\nACGTN\nRY\n"
INDEX = b"c\t8\t7\t5\t6\nd\t7\t21\t5\t6\n"


def as_bgzip(raw: bytes) -> bytes:
    """The content in blocks of 8 bytes."""
    blocks = []
    for begin in range(0, len(raw), 8):
        piece = raw[begin : begin + 8]
        packer = zlib.compressobj(wbits=-15)
        packed = packer.compress(piece) + packer.flush()
        header = bytes.fromhex("1f8b08040000000000ff060042430200") + (len(packed) + 25).to_bytes(2, "little")
        sums = zlib.crc32(piece).to_bytes(4, "little") + len(piece).to_bytes(4, "little")
        blocks.append(header + packed + sums)
    return b"".join(blocks) + BGZIP_END


BLOCKS = b"".join(number.to_bytes(8, "little") for number in (3, 36, 8, 72, 16, 108, 24))
"""The `.gzi` of the genome."""
_field = (
    st.sampled_from(
        (
            "c",
            "chrc",
            "0",
            "1",
            "7",
            "-1",
            "9" * 30,
            "1e3",
            "",
            ".",
            "*",
            "A",
            "ACGT",
            "<DEL>",
            "A,,C",
            "]c:1]A",
            "+",
            "A" * 5000,
            "N",
            " ",
            "\x00",
            "\ufeff",
            "\u0662",
        )
    )
    | odd_text
)


@st.composite
def _places(draw: st.DrawFn, whole: bytes) -> bytes:
    """A VCF or BED with a few odd fields or lines."""
    rows = [line.split("\t") for line in whole.decode().splitlines()]
    for _ in range(draw(st.integers(0, 3))):
        row = draw(st.sampled_from(rows))
        place = draw(st.integers(0, len(row) - 1))
        row[place : place + draw(st.integers(0, 1))] = [draw(_field)]
    rows = draw(st.sampled_from((rows, rows[1:], rows[::-1], rows * 2)))
    return "\n".join("\t".join(row) for row in rows).encode(errors="replace")


def sequence_cases(good: Path) -> st.SearchStrategy[Case]:
    """One file of each format that `predict` reads, odd inside."""
    table = Blob((good / "in.parquet").read_bytes())
    zipped = st.one_of(_fasta(), _table()).map(lambda raw: gzip.compress(raw, mtime=0))
    odd = {
        "in.fa": _fasta() | _fasta() | any_file(FASTA),
        "in.csv": _table() | any_file(CSV),
        "in.tsv": _table().map(lambda raw: raw.replace(b",", b"\t")),
        "in.fa.gz": zipped | any_file(gzip.compress(FASTA, mtime=0)),
        "in.csv.gz": zipped,
        "in.parquet": any_file(table),
        "in.txt": _fasta(),
        "in.vcf": _places(VCF) | any_file(VCF),
        "in.vcf.gz": _places(VCF).map(lambda raw: gzip.compress(raw, mtime=0)),
        "in.bed": _places(BED) | any_file(BED),
        "in.narrowPeak": _places(PEAKS) | any_file(PEAKS),
    }
    genomes = [
        st.fixed_dictionaries({"in.vcf": st.just(VCF), name: _fasta() | any_file(FASTA)})
        for name in ("genome.fa", "genome.fa.fai")
    ]
    indexes = {"genome.fa.fai": _places(INDEX) | any_file(INDEX), "genome.fa.gzi": any_file(BLOCKS)}
    packed = as_bgzip(GENOME_LINES)
    for genome in (st.just(GENOME_LINES), st.just(packed), damaged(packed)):
        genomes.append(st.fixed_dictionaries({"in.vcf": st.just(VCF), "genome.fa": genome, **indexes}))
    files = [st.fixed_dictionaries({name: files}) for name, files in odd.items()]
    return st.one_of(*files, *genomes).map(Case)


def run_sequences(case: Case, place: Place) -> int:
    """Predicts what is in the folder: the first file of the case, or without one the good one."""
    source = place.inputs / next(iter(case.files), "in.parquet")
    words = [
        "predict",
        "--adapter",
        place.good / "adapter",
        "--input",
        source,
        "--output",
        place.work / "out.csv",
    ]
    if source.name.startswith(("in.vcf", "in.bed", "in.narrowPeak")):
        words += ["--genome", place.inputs / "genome.fa", "--window", "5"]
    if source.name == "in.narrowPeak":
        words += ["--center", "summit"]
    with patch.object(tempfile, "tempdir", str(place.work)):  # an index begins as a nameless file there
        try:
            return main([*map(str, words), "zero.stage=0"])
        except SystemExit as end:
            return int(end.code or 0)


def kinds(good: Path) -> dict[str, Kind]:
    """Every kind of hostile input, by name."""
    return {
        "config": Kind(config_cases, None, run_config, share=6),
        "data": Kind(data_cases, "data", run_data, share=4),
        "backbone": Kind(backbone_cases(good / "backbone"), "backbone", run_backbone, share=3),
        "adapter": Kind(adapter_cases(good / "adapter"), "adapter", run_adapter, share=3),
        "checkpoint": Kind(checkpoint_cases(good / "checkpoint"), "checkpoint", run_checkpoint, share=3),
        "sequences": Kind(sequence_cases(good / "sequences"), "sequences", run_sequences, share=2),
    }
