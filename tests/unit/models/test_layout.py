"""Where adapters lie in the flat buffer."""

import json

import pytest

from lingo_ds.models.adapters.layout import BankLayout, Site


@pytest.mark.parametrize("has_lam", [True, False])
@pytest.mark.parametrize("token_shape", [(0, 0), (5, 8)])
def test_layout_comes_back_from_json(has_lam, token_shape):
    sites = Site("0.q_proj", 8, 8), Site("0.down_proj", 8, 24)
    layout = BankLayout(sites, (3, 0), (2, 8), has_lam=has_lam, token_shape=token_shape)
    back = BankLayout.from_json(json.loads(json.dumps(layout.to_json())))
    assert back == layout and hash(back) == hash(layout)
    assert BankLayout.from_json(layout.to_json()) == layout  # one process broadcasts nothing
