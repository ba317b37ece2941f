"""Shares of the rank budget and histograms of scores, for the report and the pictures."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

SCORE_BINS = 40
"""Bins of a histogram of scores."""


class SitePosition(NamedTuple):
    """A site's position: `decoder.layers.3.self_attn.q_proj` is (`decoder.layers`, 3, `self_attn.q_proj`)."""

    stack: str
    layer: int | None
    kind: str


def place_of(name: str) -> SitePosition:
    """The position in a site's name, whose first number is the layer."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    if found is None:
        return SitePosition("", None, name)
    return SitePosition(name[: found.start()], int(found[1]), name[found.end() :])


def budget_shares(ranks: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Share of all kept triplets of each layer and of each kind of map.

    Args:
        ranks: kept rank of each site, by name.

    Returns:
        `by_layer` (layer number as text, `-` without one) and `by_kind`; each sums to 1 unless none is kept.
    """
    total = max(sum(ranks.values()), 1)
    shares: dict[str, dict[str, float]] = {"by_layer": {}, "by_kind": {}}
    for name, rank in ranks.items():
        place = place_of(name)
        layer = "-" if place.layer is None else str(place.layer)
        for group, key in (("by_layer", layer), ("by_kind", place.kind)):
            shares[group][key] = shares[group].get(key, 0.0) + rank / total
    return shares


class ScoreHistogram(NamedTuple):
    """Scores of all triplets at one mask event, in bins of equal width on a logarithmic axis.

    Attributes:
        step: step of the mask event.
        edges: (bins + 1,) edges; the first and last are the least and the largest score above 0.
        kept, pruned: (bins,) numbers of triplets; a score of 0 counts in the first bin.
    """

    step: int
    edges: list[float]
    kept: list[int]
    pruned: list[int]


def score_histogram(scores: np.ndarray, kept: np.ndarray, *, step: int) -> ScoreHistogram:
    """Counts the scores (triplets,) of kept and of pruned triplets; `kept` is (triplets,) of bool.

    A score that overflowed counts as the largest finite one, nan as the least.
    """
    finite = scores[np.isfinite(scores)]
    scores = np.nan_to_num(scores, nan=0.0, posinf=finite.max(initial=0.0))
    positive = scores[scores > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (0.1, 1.0)
    edges = np.geomspace(low, high if high > low else 10 * low, SCORE_BINS + 1)
    inside = np.clip(scores, edges[0], edges[-1])
    counts = [np.histogram(inside[which], edges)[0].tolist() for which in (kept, ~kept)]
    return ScoreHistogram(step, edges.tolist(), *counts)
