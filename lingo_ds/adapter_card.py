"""What an adapter folder says: its task, its backbone, how it reads its input, and the learned values."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, Field, field_validator
from torch import Tensor

from lingo_ds.adapters.layout import BankLayout, Site, SiteViews
from lingo_ds.data.tasks import Task

MAX_CLASSES = 1 << 16
"""More are taken for a damaged card; the head is as large as the card says."""


class BackboneCard(BaseModel, extra="forbid", frozen=True):
    """Which backbone an adapter belongs to: a folder's whole path, a hub id, or what the package embeds."""

    path: str
    fingerprint: str
    revision: str | None = None


class DataCard(BaseModel, extra="forbid", frozen=True):
    """Which data an adapter was trained on: its name, its rows by split, bases of a usual sequence."""

    name: str
    fingerprint: str
    rows: dict[str, Annotated[int, Field(ge=0)]]
    bases: Annotated[int, Field(ge=1)] | None = None


class Card(BaseModel, extra="forbid", frozen=True):
    """What an adapter was trained for, and how it reads its input: `task.json`."""

    format: Literal[1] = 1
    task: Task
    pooling: Literal["last", "mean", "first"]
    backbone: BackboneCard
    step: Annotated[int, Field(ge=0)]
    at_budget: bool
    dev: dict[str, float | None]
    data: DataCard | None = None

    @field_validator("task")
    @classmethod
    def _possible(cls, task: Task) -> Task:
        if not 0 < task.classes <= MAX_CLASSES or task.max_length < 1:
            raise ValueError(f"{task.classes} classes of at most {task.max_length} tokens")
        if task.template is not None and task.template.count("{sequence}") != 1:
            raise ValueError("the template must hold {sequence} once")
        return task


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
        values: (layout.size,) fp32.
        alpha, rank: scale is alpha / rank.
        card: task, backbone, pooling, step and dev metrics.
    """

    layout: BankLayout
    values: Tensor
    alpha: float
    rank: int
    card: Card

    @property
    def scale(self) -> float:
        """What every site's low-rank term is multiplied by."""
        return self.alpha / self.rank

    def kept(self) -> list[KeptSite]:
        """The sites that have triplets, in the layout's order."""
        layout = self.layout
        return [
            KeptSite(site, rank, layout.site(self.values, k))
            for k, (site, rank) in enumerate(zip(layout.sites, layout.ranks, strict=True))
            if rank
        ]
