"""Examples and tokens of a pack, by hand."""

from dataclasses import replace

import pytest

from lingo_ds.planning.plan import make_plan
from tests.unit.planning.facts import PACKED, SMALL, config, on


@pytest.mark.parametrize(
    ("facts", "fields"),
    [(SMALL, {}), (PACKED, {"data__packing": "off"})],
    ids=["no family for it", "off"],
)
def test_batches_are_padded_where_packs_cannot_or_must_not_be(facts, fields):
    plan = make_plan(config(**fields), facts)
    assert (plan.packed, plan.share_prefix, plan.micro_batch_tokens) == (False, False, None)
    assert "padded" in plan.equations()[0]


@pytest.mark.parametrize(
    ("fields", "tokens", "micro", "accumulation"),
    [
        ({}, 20 + 32 * 52, 32, 1),  # a whole share of the longest examples, their prefix once
        ({"train__micro_batch_tokens": 300}, 300, 5, 7),  # (300 - 20) / 51.5 examples on average
        ({"train__micro_batch_tokens": 5}, 72, 1, 32),  # the longest example fits
        ({"train__micro_batch_size": 4}, 20 + 4 * 52, 4, 8),
    ],
    ids=["room", "asked", "at least the longest", "examples"],
)
def test_tokens_of_a_pack(fields, tokens, micro, accumulation):
    plan = make_plan(config(train__global_batch_size=32, zero__stage=0, **fields), PACKED)
    assert (plan.micro_batch_tokens, plan.micro_batch_size, plan.accumulation) == (
        tokens,
        micro,
        accumulation,
    )
    assert f"packed to {tokens:,} tokens at most, 20 of each shared" in plan.equations()[0]


def test_tokens_of_a_pack_are_what_memory_holds():
    roomy = make_plan(config(zero__stage=0), PACKED)
    fixed = sum(roomy.bytes_per_process.values()) - roomy.bytes_per_process["activations"]
    one = roomy.bytes_per_process["activations"] // roomy.micro_batch_tokens
    tight = replace(PACKED, memory_bytes=int((fixed + 200.5 * one) / 0.8))
    plan = make_plan(config(zero__stage=0), tight)
    assert plan.micro_batch_tokens == 200
    assert plan.bytes_per_process["activations"] == 200 * one


@pytest.mark.parametrize(
    ("prefix", "causal", "shared"), [(1, True, False), (3, True, True), (20, False, False)]
)
def test_prefix_is_shared_where_it_pays_and_can_be(prefix, causal, shared):
    """Above 3 % of 71.5 tokens, and never in an encoder."""
    plan = make_plan(config(), replace(PACKED, shared_prefix=prefix, causal=causal))
    assert plan.packed and plan.share_prefix is shared


@pytest.mark.parametrize(
    "world, batch, tokens",
    [(2, 32, 20 + 16 * 52), (3, 32, 20 + 11 * 52), (32, 32, 72)],
)
def test_pack_holds_a_process_share_of_the_batch_and_no_more(world, batch, tokens):
    plan = make_plan(config(train__global_batch_size=batch), on(PACKED, world))
    assert (plan.micro_batch_tokens, plan.accumulation) == (tokens, 1)
    assert plan.eval_tokens > plan.micro_batch_tokens


def test_share_of_like_examples_is_one_pack_where_the_prefix_is_not_shared():
    """Sequences of one length, which have only their first token in common."""
    facts = replace(PACKED, longest=301, mean_tokens=301.0, shared_prefix=1)
    plan = make_plan(config(train__global_batch_size=32), facts)
    assert not plan.share_prefix and plan.accumulation == 1
    assert plan.micro_batch_tokens == 32 * 301
