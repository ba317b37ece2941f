"""Where adapters lie in the flat buffer."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lingo_ds.models.adapters.layout import BankLayout, Site
from tests.unit.models.dense_adapters import site_parts


@pytest.mark.parametrize("has_lam", [True, False])
@pytest.mark.parametrize("token_shape", [(0, 0), (5, 8)])
def test_layout_comes_back_from_json(has_lam, token_shape):
    sites = Site("0.q_proj", 8, 8), Site("0.down_proj", 8, 24)
    layout = BankLayout(sites, (3, 0), (2, 8), has_lam=has_lam, token_shape=token_shape)
    back = BankLayout.from_json(json.loads(json.dumps(layout.to_json())))
    assert back == layout and hash(back) == hash(layout)
    assert BankLayout.from_json(layout.to_json()) == layout  # one process broadcasts nothing


@st.composite
def layouts(draw: st.DrawFn) -> BankLayout:
    count = draw(st.integers(1, 6))
    lengths = st.integers(1, 5)
    sites = tuple(Site(f"s{k}", draw(lengths), draw(lengths)) for k in range(count))
    ranks = tuple(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    head_shape = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    token_shape = draw(st.sampled_from([(0, 0), (5, 3)]))
    return BankLayout(sites, ranks, head_shape, has_lam=draw(st.booleans()), token_shape=token_shape)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layouts())
def test_any_layout_covers_the_buffer_once(layout: BankLayout):
    flat = torch.arange(layout.size)
    covered = torch.cat([part.flatten() for part in site_parts(layout, flat)])
    assert sorted(covered.tolist()) == flat.tolist()
    rows = [block.of(flat) for block in layout.blocks]
    adapters = torch.cat([*(block.flatten() for block in rows), layout.lam(flat)])
    assert adapters.tolist() == list(range(layout.adapter_size))
    own = 1 if layout.has_lam else 0  # lam of each triplet
    sizes = [rank * (s.d_out + s.d_in + own) for s, rank in zip(layout.sites, layout.ranks, strict=True)]
    assert layout.adapter_size == sum(sizes)
    beside = layout.head_shape[0] * layout.head_shape[1] + layout.token_shape[0] * layout.token_shape[1]
    assert layout.size == sum(sizes) + beside
    for k, (site, rank) in enumerate(zip(layout.sites, layout.ranks, strict=True)):
        views = layout.site(flat, k)
        assert [view.shape for view in views] == [(rank, site.d_out), (own * rank,), (rank, site.d_in)]
        assert all(view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr() for view in views)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layouts())
def test_any_layout_knows_which_row_is_whose(layout: BankLayout):
    flat = torch.arange(layout.size)
    first_of_row = torch.cat([block.of(flat)[:, 0] for block in layout.blocks])
    owner_of_row = np.concatenate([block.triplet_of_row for block in layout.blocks])
    p_rows, q_rows = layout.rows_of_triplets
    for k in range(len(layout.sites)):
        p, lam, q = layout.site(flat, k)
        triplets = range(int(layout.first_triplet[k]), int(layout.first_triplet[k + 1]))
        assert lam.tolist() == [layout.lam_start + triplet for triplet in triplets if layout.has_lam]
        for views, rows, which in ((p, p_rows, k), (q, q_rows, len(layout.sites) + k)):
            assert layout.matrices[which].tolist() == rows[triplets.start : triplets.stop].tolist()
            for slot, triplet in enumerate(triplets):
                assert first_of_row[rows[triplet]] == views[slot, 0]
                assert owner_of_row[rows[triplet]] == triplet


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layouts(), st.data())
def test_any_selection_equals_selecting_by_hand(layout: BankLayout, data: st.DataObject):
    n = layout.triplets
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    flat = torch.arange(layout.size)
    smaller, taken = layout.keep(kept), layout.take(kept, flat)[0]
    assert smaller.sites == layout.sites
    assert smaller == replace(layout, ranks=smaller.ranks)
    assert len(taken) == smaller.size
    for k in range(len(layout.sites)):
        own = torch.from_numpy(kept[layout.first_triplet[k] : layout.first_triplet[k + 1]])
        assert smaller.ranks[k] == int(own.sum())
        for found, whole in zip(smaller.site(taken, k), layout.site(flat, k), strict=True):
            assert torch.equal(found, whole[own[: len(whole)]])  # LoRA's lam is empty
    assert torch.equal(smaller.head(taken), layout.head(flat))
    assert torch.equal(smaller.tokens(taken), layout.tokens(flat))
    (importance,) = layout.take(kept, flat[: layout.adapter_size])  # has neither head nor tokens
    assert torch.equal(importance, taken[: smaller.adapter_size])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(layouts(), st.data())
def test_any_layout_with_other_ranks_is_one_made_with_them(layout: BankLayout, data: st.DataObject):
    n = len(layout.sites)
    ranks = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    before = layout.size, layout.triplets, layout.ranks
    found = layout.with_ranks(ranks)
    assert found == BankLayout(
        layout.sites, tuple(ranks), layout.head_shape, layout.has_lam, layout.token_shape
    )
    assert found.triplets == sum(ranks)  # nothing that the first had worked out stays
    flat = torch.arange(found.size)
    covered = torch.cat([part.flatten() for part in site_parts(found, flat)])
    assert sorted(covered.tolist()) == flat.tolist()
    assert (layout.size, layout.triplets, layout.ranks) == before
    assert layout.with_ranks(list(layout.ranks)) == layout
