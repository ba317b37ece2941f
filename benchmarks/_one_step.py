"""One training step of a few layers on a GPU: its operators counted, or its layers timed."""

import statistics
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks._operators import Operator, OperatorCount, Sections
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import uniform_layout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.utils.files import default_cache

CARD = torch.device("cuda", 0)


class Work(NamedTuple):
    """What is trained.

    Attributes:
        folder: the backbone's.
        prefix: tokens of the shared prefix.
        lengths: own tokens of each example.
        rank: of every adapter.
        classes: outputs of the head.
    """

    folder: Path
    prefix: int
    lengths: tuple[int, ...]
    rank: int = 8
    classes: int = 2


class Step:
    """The forward and backward pass of one pack, as training computes it."""

    def __init__(self, work: Work, *, fused: bool):
        self._work = work
        spec = read_spec(work.folder)
        options = BackboneOptions(packed=True, fused_kernels="auto" if fused else "off")
        backbone = load_backbone(spec, options, dtype=torch.bfloat16, env=DistEnv(0, 0, 1, 1, CARD))
        stem = spec.last_layer.rpartition(".")[0]
        self.layers: list[nn.Module] = [
            backbone.module.get_submodule(f"{stem}.{k}") for k in range(spec.layers)
        ]
        self._spec, self._backbone = spec, backbone

    def adapt(self) -> None:
        """Puts adapters on the backbone."""
        spec, work = self._spec, self._work
        sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
        layout = uniform_layout(sites, rank=work.rank, head_shape=(work.classes, spec.output_size))
        self._bank = AdapterBank(
            layout, scale=2.0, dtype=torch.bfloat16, device=CARD, scalars=6, importance=False
        )
        self._model = AdaptedModel(
            self._backbone, self._bank, pooling="last", dropout=0.0, shared_inputs=spec.shared_inputs
        )
        self._backbone.train()
        self._bank.zero_grad()

    def run(self) -> None:
        """Computes the gradient of all adapters."""
        work = self._work
        ids = torch.arange(work.prefix + sum(work.lengths)) % self._spec.embedding_shape[0]
        labels = torch.arange(len(work.lengths), device=CARD) % work.classes
        logits = self._model.packed_logits(ids, self._model.pack_places(work.prefix, work.lengths))
        F.cross_entropy(logits, labels, reduction="sum").backward()
        self._bank.collect_grad()
        self._bank.finish_grad()


def count(work: Work) -> list[Operator]:
    """The operators of one step, by section; needs a card, or a pretend one, for its name alone."""
    step, mode = Step(work, fused=True), OperatorCount()

    def enter(section: str) -> None:
        mode.section = section

    with mode:
        step.adapt()
        Sections(step.layers, enter)
        step.run()
    return mode.operators


def measure(work: Work, *, repeats: int, fused: bool) -> dict[str, float]:
    """Median seconds that the card takes for each section."""
    step = Step(work, fused=fused)
    step.adapt()
    marks: list[tuple[str, torch.cuda.Event]] = []

    def enter(section: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        marks.append((section, event))

    Sections(step.layers, enter)
    seconds: dict[str, list[float]] = {}
    for turn in range(repeats + 2):
        marks.clear()
        step.run()
        torch.cuda.synchronize()
        for (section, start), (_, end) in pairwise(marks):
            if turn >= 2:  # the first ones compile and allocate
                seconds.setdefault(section, []).append(start.elapsed_time(end) / 1e3)
    return {section: statistics.median(values) for section, values in seconds.items()}


def count_without_card(work: Work) -> list[Operator]:
    """`count` in a process with a pretend card."""
    from tests.pretend.cards import Cards, build

    folder = default_cache() / "pretend"
    folder.mkdir(parents=True, exist_ok=True)
    (operators,) = Cards(build(folder)).call(count, work)
    return operators
