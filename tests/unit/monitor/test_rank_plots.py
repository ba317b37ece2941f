"""Pictures of the ranks show what the numbers say."""

import numpy as np
import pytest

from lingo_ds.monitor.rank_plots import draw_budget, draw_rank_map, draw_scores, draw_shares
from lingo_ds.monitor.rank_statistics import score_histogram

pytestmark = pytest.mark.filterwarnings("error")

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")


def sites(layers: int, rank: int) -> dict[str, int]:
    return {f"layers.{layer}.{kind}": rank for layer in range(layers) for kind in KINDS}


def test_rank_map_is_a_picture_that_shows_the_ranks():
    full = draw_rank_map(sites(5, 8), initial_rank=8, title="step 1")
    assert full.dtype == np.uint8
    assert full.ndim == 3
    assert full.shape[2] == 3
    assert full.shape[0] > 150
    assert full.shape[1] > 300
    half = draw_rank_map(sites(5, 4), initial_rank=8, title="step 1")
    none = draw_rank_map(sites(5, 0), initial_rank=8, title="step 1")
    assert full.mean() + 20 < half.mean() < none.mean() - 20  # more kept, darker
    assert (full == draw_rank_map(sites(5, 8), initial_rank=8, title="step 1")).all()


def test_rank_map_puts_one_site_in_one_cell():
    plain = draw_rank_map(sites(4, 0), initial_rank=8, title="")
    changed = {}
    for name in sites(4, 0):
        rows, columns = np.nonzero(
            (plain != draw_rank_map(sites(4, 0) | {name: 8}, initial_rank=8, title="")).any(2)
        )
        assert np.ptp(rows) < plain.shape[0] / 3, name
        assert np.ptp(columns) < plain.shape[1] / 4, name
        changed[name] = (rows.mean(), columns.mean())
    for kind in KINDS:  # layers run to the right
        across = [changed[f"layers.{layer}.{kind}"][1] for layer in range(4)]
        assert across == sorted(across)
    for layer in range(4):  # kinds run down, in the order they came
        down = [changed[f"layers.{layer}.{kind}"][0] for kind in KINDS]
        assert down == sorted(down)


def test_rank_map_sorts_layers_by_number_and_takes_any_names():
    few = draw_rank_map({"layers.10.q": 8, "layers.9.q": 0}, initial_rank=8, title="")
    left, right = few[:, : few.shape[1] // 2], few[:, few.shape[1] // 2 : int(few.shape[1] * 0.8)]
    assert left.mean() > right.mean()
    odd = {"encoder.layers.0.q": 1, "decoder.layers.0.q": 2, "lm_head": 3, "h.1.mlp.experts.4.up": 4}
    for kept in (odd, {}, sites(90, 3)):
        assert draw_rank_map(kept, initial_rank=4, title="odd").shape[2] == 3


def test_budget_plot_shows_budget_kept_and_returned():
    history = [(10, 40, 40, 0), (20, 30, 29, 3), (30, 20, 20, 2)]
    plain = draw_budget(history)
    assert (plain.dtype, plain.shape[2]) == (np.uint8, 3)
    for changed in ((20, 35, 29, 3), (20, 30, 20, 3), (20, 30, 29, 1)):
        assert (plain != draw_budget([history[0], changed, history[2]])).any()
    assert draw_budget([]).shape == draw_budget(history[:1]).shape == plain.shape


def test_shares_follow_the_budget():
    even = draw_shares(sites(5, 4))
    assert (even.dtype, even.shape[2]) == (np.uint8, 3)
    changed = {}
    for layer in (0, 4):
        kept = {name: 8 if name.startswith(f"layers.{layer}.") else 1 for name in sites(5, 4)}
        left = draw_shares(kept)[:, : even.shape[1] // 2]
        changed[layer] = np.nonzero((left < 100).any(2))[1].mean()  # where the ink is
    assert changed[0] < changed[4]
    for kept in ({}, sites(5, 0), sites(90, 3), {"lm_head": 3}):
        assert draw_shares(kept).ndim == 3


def test_scores_of_kept_and_pruned_differ_in_colour():
    scores = np.geomspace(1e-9, 1e-3, 50)
    half = draw_scores(score_histogram(scores, scores > 1e-6, step=3))
    everything = draw_scores(score_histogram(scores, scores > 0, step=3))

    def blue(picture: np.ndarray) -> int:
        red, blue = picture[..., 0].astype(int), picture[..., 2].astype(int)
        return int((blue - red > 80).sum())

    assert 0.35 < blue(half) / blue(everything) < 0.65
    assert draw_scores(score_histogram(np.zeros(4), np.ones(4, bool), step=1)).ndim == 3
