"""The embedded backbone's training on paper: its settings, its model card and its loss curve."""

import math
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import LlamaConfig

from lingo_ds.models.backbone.builtin import CONTEXT
from scripts.english_text import COLLECTIONS

_CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
library_name: transformers
tags: [llama, character-level]
---

# A small English language model, one token a character

The backbone that `lingo_ds` embeds as `builtin:english`, so that a first run needs no download: a causal
language model of {parameters:,} parameters (Llama architecture, {layers} layers, hidden size {hidden},
{context:,} tokens of context, weights in bf16). Its tokenizer gives `<s>`, then one token per printable ASCII
character, newline or tab. It knows the spelling of English and little more, and has seen no DNA. It is meant
to be frozen under adapters, not to write text.

## Text
Prose from packages of a Debian installation, markup, code and tables left out (`scripts/english_text.py`);
one file in fifty was held out.

| package | what | licence | characters |
|---|---|---|---|
{text}

Copyright of the text stays with its authors; none of it is in this folder. WordNet 3.0 Copyright 2006 by
Princeton University. All rights reserved.

## Training
`python -m scripts.pretrain_backbone --output lingo_ds/models/backbone/english`: {steps:,} steps of {batch:,}
characters ({tokens:,} in all), windows of {short} characters for the first {share:.0%} of the steps, then of
{long:,}; AdamW, learning rate {peak} with {warmup} steps of warm-up, then a cosine to a tenth; seed {seed}.
{minutes:.0f} minutes on {threads} thread(s) of {machine}, torch {torch}.
Held-out loss, on windows of {long:,}: {first:.3f} nats per character at step {first_step:,}, {last:.3f}
({bits:.2f} bits) at the end.
"""


@dataclass(frozen=True)
class Settings:
    """Settings of the training that decide the weights.

    Attributes:
        tokens: tokens of the whole training.
        batch: tokens of a step.
        short, long: tokens of a window; the first `short_share` of the steps see short ones.
        peak: learning rate after `warmup` steps; it falls to a tenth as a cosine.
        weight_decay: AdamW's, on matrices.
        seed: seed of the initial weights and of the windows' places.
    """

    tokens: int = 20_000_000
    batch: int = 4096
    short: int = 256
    long: int = CONTEXT
    short_share: float = 0.88
    peak: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.1
    seed: int = 0

    @property
    def steps(self) -> int:
        """Number of steps in the whole training."""
        return self.tokens // self.batch

    def window(self, step: int) -> int:
        """Tokens of each window at a step, counted from 1."""
        return self.short if step <= self.short_share * self.steps else self.long

    def learning_rate(self, step: int) -> float:
        """Learning rate at a step, counted from 1."""
        if step <= self.warmup:
            return self.peak * step / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak * (0.55 + 0.45 * math.cos(math.pi * done))


def card_text(
    settings: Settings,
    characters: dict[str, int],
    curve: list[dict[str, float]],
    *,
    config: LlamaConfig,
    parameters: int,
    seconds: float,
) -> str:
    """The model card: the text, the training and the held-out loss."""
    rows = (
        f"| {one.package} | {one.what} | {one.licence} | {characters[one.package]:,} |" for one in COLLECTIONS
    )
    return _CARD.format(
        parameters=parameters,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        context=config.max_position_embeddings,
        text="\n".join(rows),
        steps=settings.steps,
        batch=settings.batch,
        tokens=settings.steps * settings.batch,
        short=settings.short,
        long=settings.long,
        share=settings.short_share,
        peak=settings.peak,
        warmup=settings.warmup,
        seed=settings.seed,
        minutes=seconds / 60,
        threads=torch.get_num_threads(),
        machine=f"an {platform.machine()} processor",
        torch=torch.__version__.partition("+")[0],
        first=curve[0]["held_out"],
        first_step=curve[0]["step"],
        last=curve[-1]["held_out"],
        bits=curve[-1]["held_out"] / math.log(2),
    )


def draw_curve(path: Path, curve: list[dict[str, float]]) -> None:
    """Draws the loss over the characters seen, as PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    tokens = [point["tokens"] / 1e6 for point in curve]
    for name, words in (("train", "training text"), ("held_out", f"held-out text, windows of {CONTEXT:,}")):
        axes.plot(tokens, [point[name] for point in curve], label=words)
    axes.set(xlabel="characters seen (millions)", ylabel="loss (nats per character)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)
