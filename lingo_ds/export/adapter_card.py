"""`task.json` and what an adapter folder holds: task, backbone, how the input is read, learned values."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, Field, field_validator, model_validator
from torch import Tensor

from lingo_ds.data.labels import MAX_OUTPUTS
from lingo_ds.data.task import Task
from lingo_ds.models.adapters.layout import BankLayout, Site, SiteViews

QUANTIZED = {
    "int8": ("8 bits, scaled by rows", "load_in_8bit=True"),
    "nf4": (
        "4 bits, double quantisation",
        'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True',
    ),
}
"""Each quantisation in words, and as the settings of transformers' BitsAndBytesConfig that equal it."""


class BackboneCard(BaseModel, extra="forbid", frozen=True):
    """Which backbone an adapter belongs to: the whole path of a folder, a hub id, or a built-in name.

    `fingerprint` is that of its files; `quantization` is how their maps were held in training; `tokens` tells
    how its tokenizer reads DNA in the task's prompt, see `tokens_fingerprint`.
    """

    path: str
    fingerprint: str
    revision: str | None = None
    quantization: Literal["none", "int8", "nf4"] = "none"
    tokens: str | None = None


class WindowCard(BaseModel, extra="forbid", frozen=True):
    """What of the genome was read for an interval in training, as `WindowRule` has it."""

    window: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    flank: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    center: Literal["middle", "summit"] = "middle"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.window is None and self.center == "summit":
            raise ValueError("a summit without a window around it")
        if self.window is not None and self.flank:
            raise ValueError("both a window and a flank")
        return self


class DataCard(BaseModel, extra="forbid", frozen=True):
    """Which data an adapter was trained on.

    Its name, its rows by split, the bases of a typical sequence, and of intervals what was read for each.
    """

    name: str
    fingerprint: str
    rows: dict[str, Annotated[int, Field(ge=0)]]
    bases: Annotated[int, Field(ge=1)] | None = None
    windows: WindowCard | None = None


class Card(BaseModel, extra="forbid", frozen=True):
    """What an adapter was trained for, and how it reads its input: `task.json`.

    Format 1 had only classes, without names and thresholds, and format 2 no windows; both are still read.
    """

    format: Literal[1, 2, 3] = 3
    task: Task
    pooling: Literal["last", "mean", "first"]
    backbone: BackboneCard
    step: Annotated[int, Field(ge=0)]
    at_budget: bool
    dev: dict[str, float | None]
    data: DataCard | None = None
    average_strands: bool = False

    @field_validator("task")
    @classmethod
    def _possible(cls, task: Task) -> Task:
        if not 0 < task.classes <= MAX_OUTPUTS or task.max_length < 1:
            raise ValueError(f"{task.classes} classes of at most {task.max_length} tokens")
        if task.template is not None and task.template.count("{sequence}") != 1:
            raise ValueError("the template must hold {sequence} once")
        _require_complete(task)
        return task


def _require_complete(task: Task) -> None:
    """Raises ValueError where a task lacks what its answers need, or has what they do not use."""
    if task.names and (len(task.names), len(set(task.names))) != (task.classes, task.classes):
        raise ValueError(f"the names are not those of {task.outputs}")
    thresholds = {"binary": 1, "multilabel": task.classes}.get(task.kind, 0)
    moments = task.classes if task.kind == "regression" else 0
    for name, least, most, wanted, optional in (
        ("thresholds", 0.0, 1.0, thresholds, True),
        ("mean", -math.inf, math.inf, moments, moments == 0),
        ("scale", 0.0, math.inf, moments, moments == 0),
    ):
        numbers = getattr(task, name)
        if numbers is None and optional:
            continue
        if numbers is None or len(numbers) != wanted or not wanted:
            raise ValueError(f"{name} does not go with {task.kind}")
        if not all(math.isfinite(number) and least <= number <= most for number in numbers):
            raise ValueError(f"{name} is out of bounds")


class KeptSite(NamedTuple):
    """A site that has triplets, with its rank and values."""

    site: Site
    rank: int
    views: SiteViews


@dataclass(frozen=True)
class SavedAdapter:
    """What an adapter folder holds, the head included.

    Attributes:
        layout: sites with their own ranks.
        values: (layout.size,) fp32, all learned values.
        alpha, rank: numerator and denominator of the scale.
        card: task, backbone, pooling, step and dev metrics.
    """

    layout: BankLayout
    values: Tensor
    alpha: float
    rank: int
    card: Card

    @property
    def scale(self) -> float:
        """The factor of every site's low-rank term."""
        return self.alpha / self.rank

    def kept(self) -> list[KeptSite]:
        """The sites that have triplets, in the layout's order."""
        layout = self.layout
        return [
            KeptSite(site, rank, layout.site(self.values, k))
            for k, (site, rank) in enumerate(zip(layout.sites, layout.ranks, strict=True))
            if rank
        ]
