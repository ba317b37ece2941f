"""What `train_throughput` trains on: workloads and backbones, written as files."""

import csv
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from benchmarks.make_backbone import config_of, make
from lingo_ds.data.batches import epoch_order
from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.synthetic_promoters import write_promoters
from lingo_ds.models.backbone.builtin import write_backbone
from lingo_ds.models.backbone.tokenizer import read_tokenizer

SEED = 0
WARMUP = 3
"""Steps before the timed ones; the learning rate rises in them."""

COOLDOWN = 1
"""Steps after the timed ones: ours evaluates within its last step."""

LLAMA_50M = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 16,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "initializer_range": 512**-0.5,
}
LLAMA_260K = {
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "initializer_range": 64**-0.5,
}
"""The shape of the English language model stories260k."""

MADE = {"tiny": {}, "llama-260k": LLAMA_260K, "llama-50m": LLAMA_50M}
"""Backbones made on the spot, by what differs from `builtin:tiny`."""

DESCRIPTION = """
Decide whether the following stretch of human DNA is a core promoter. A core promoter lies around the
place where transcription starts, binds the general transcription factors and positions RNA polymerase.
Look for a TATA box about thirty bases before that place, for an initiator on top of it and, where there
is no TATA box, for a downstream element about thirty bases behind it. A motif that lies elsewhere does
not count."""
ANSWER = "\nSequence: {sequence}\nAnnotation:"


def describe_task(tokenizer: PreTrainedTokenizerBase, tokens: int = 100) -> str:
    """A template that begins with as many words of the description as make up so many tokens."""
    words = DESCRIPTION.split()
    texts = (" ".join(words[:count]) for count in range(1, len(words) + 1))
    return next(text for text in texts if len(tokenizer(text)["input_ids"]) >= tokens) + ANSWER


class Workload(NamedTuple):
    """Examples of equal shares of some lengths, shuffled; `prefix` makes a template for a tokenizer."""

    lengths: tuple[int, ...]
    what: str
    prefix: Callable[[PreTrainedTokenizerBase], str | None]


WORKLOADS = {
    "a": Workload((70,), "no prefix", lambda tokenizer: None),
    "b": Workload((70,), "long prefix", describe_task),
    "c": Workload((70, 101, 300, 500), "short prefix", lambda tokenizer: "Domain: human promoters" + ANSWER),
}


class Work(NamedTuple):
    """A workload on a backbone, as files.

    Attributes:
        backbone: Hugging Face folder.
        what: name for the tables.
        data: folder with train.csv, dev.csv and test.csv; an epoch is a run.
        prefix: template around the DNA.
        rows: the training examples' token ids and labels, in the order of our first epoch.
        batch: examples per step.
        steps: timed steps.
        learning_rate: peak.
        tokens: per example, on average.
    """

    backbone: Path
    what: str
    data: Path
    prefix: str | None
    rows: Path
    batch: int
    steps: int
    learning_rate: float
    tokens: float

    @property
    def all_steps(self) -> int:
        """Steps of a run."""
        return WARMUP + self.steps + COOLDOWN


def make_backbone(name: str, folder: Path) -> Path:
    """Writes one of `MADE`, or of `make_backbone.SHAPES` in bf16, with random weights."""
    if name not in MADE:
        make(folder, config_of(name), dtype=torch.bfloat16, shard_bytes=5 * 10**9, seed=SEED)
        return folder
    write_backbone(folder, seed=SEED)
    if MADE[name]:
        config = AutoConfig.from_pretrained(folder)
        config.update(MADE[name])
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(config)
        torch.nn.init.normal_(model.get_input_embeddings().weight)  # as `builtin:tiny` has them
        model.save_pretrained(folder)
    return folder


def prepare(
    workload: Workload, backbone: Path, folder: Path, *, batch: int, steps: int, learning_rate: float
) -> Work | None:
    """Writes one epoch of exactly the run's steps; None where no length fits the backbone's context."""
    tokenizer = read_tokenizer(backbone)
    prefix = workload.prefix(tokenizer)
    prompt = make_prompt(prefix, domain=None)
    context = AutoConfig.from_pretrained(backbone).max_position_embeddings
    room = context + 1 - len(tokenizer(prompt.render("A"))["input_ids"])  # a base is a token at most
    fitting = [length for length in workload.lengths if length <= room]
    if not fitting:
        return None
    count = batch * (WARMUP + steps + COOLDOWN)
    write_data(folder / "data", fitting, count)
    with (folder / "data" / "train.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    tokens = tokenizer([prompt.render(row["sequence"]) for row in rows])["input_ids"]
    order = epoch_order(count, seed=SEED, epoch=0).tolist()
    examples = [{"input_ids": tokens[row], "labels": int(rows[row]["label"])} for row in order]
    (folder / "rows.json").write_text(json.dumps(examples))
    what = f"{' '.join(map(str, fitting))} bp, {workload.what}"
    if left_out := [length for length in workload.lengths if length > room]:
        what += f"; {' '.join(map(str, left_out))} bp beyond the context"
    mean_tokens = statistics.mean(map(len, tokens))
    return Work(
        backbone,
        what,
        folder / "data",
        prefix,
        folder / "rows.json",
        batch,
        steps,
        learning_rate,
        mean_tokens,
    )


def write_data(folder: Path, lengths: Sequence[int], count: int) -> None:
    """A folder in GUE's layout: `count` generated promoters, equal shares of each length, shuffled."""
    splits: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for length in lengths:
        part = folder / f"{length}"
        write_promoters(
            part, seed=SEED, train=max(2, -(-count // len(lengths))), dev=2, test=2, length=length
        )
        for split, lines in splits.items():
            lines += (part / f"{split}.csv").read_text().splitlines()[1:]
    for split, lines in splits.items():
        order = np.random.default_rng(SEED).permutation(len(lines))[:count]
        text = "\n".join(["sequence,label", *(lines[row] for row in order)])
        (folder / f"{split}.csv").write_text(text + "\n")
