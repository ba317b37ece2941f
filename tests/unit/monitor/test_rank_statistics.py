"""Where the budget went and how the scores lie, against counts by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingo_ds.monitor.rank_statistics import SCORE_BINS, budget_shares, place_of, score_histogram


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("layers.3.self_attn.q_proj", ("layers", 3, "self_attn.q_proj")),
        ("decoder.layers.12.fc1", ("decoder.layers", 12, "fc1")),
        ("h.0.attn.c_attn", ("h", 0, "attn.c_attn")),
        ("7.q", ("", 7, "q")),
        ("embed_out", ("", None, "embed_out")),
        ("conv1d.weight2", ("", None, "conv1d.weight2")),
    ],
)
def test_place_of_a_site(name: str, place: tuple):
    assert place_of(name) == place


def test_shares_by_hand():
    ranks = {"layers.0.q": 4, "layers.0.up": 0, "layers.10.q": 1, "layers.10.up": 2, "projection": 1}
    shares = budget_shares(ranks)
    assert shares["by_layer"] == {"0": 0.5, "10": 0.375, "-": 0.125}
    assert shares["by_kind"] == {"q": 0.625, "up": 0.25, "projection": 0.125}


@given(st.dictionaries(st.from_regex(r"[ab]\.[0-9]\.[pq]", fullmatch=True), st.integers(0, 8), min_size=1))
def test_shares_sum_to_one_unless_nothing_is_kept(ranks: dict[str, int]):
    for shares in budget_shares(ranks).values():
        assert sum(shares.values()) == pytest.approx(1.0 if any(ranks.values()) else 0.0)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6, allow_subnormal=False, width=32), st.booleans()), min_size=1, max_size=60
    )
)
def test_every_triplet_is_counted_once(drawn: list[tuple[float, bool]]):
    scores = np.array([score for score, _ in drawn], np.float64)
    kept = np.array([flag for _, flag in drawn])
    histogram = score_histogram(scores, kept, step=7)
    assert (histogram.step, len(histogram.edges)) == (7, SCORE_BINS + 1)
    assert (sum(histogram.kept), sum(histogram.pruned)) == (kept.sum(), (~kept).sum())
    assert all(np.diff(histogram.edges) > 0)


def test_scores_fall_into_their_decades():
    scores = np.array([0.0, 1e-8, 1e-8, 1e-4, 1.0])
    histogram = score_histogram(scores, scores > 1e-6, step=1)
    assert histogram.edges[0] == pytest.approx(1e-8) and histogram.edges[-1] == pytest.approx(1.0)
    assert histogram.pruned[0] == 3  # the score of 0 counts with the least
    assert histogram.kept[SCORE_BINS // 2] == 1 and histogram.kept[-1] == 1
    assert sum(histogram.kept) + sum(histogram.pruned) == 5
