"""Examples and tokens of a pack, by hand."""

from dataclasses import replace

import pytest

from lingo_ds.planning.layer import PRODUCT_CODE_BYTES
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


@pytest.mark.parametrize(("kept", "factor"), [(1000, 4), (200, 2), (60, 1)])
def test_an_evaluation_stays_in_the_memory_that_training_takes(kept, factor):
    """4 layers keep 4 x kept entries of a token, and one has 400 inside a layer; at most four times."""
    facts = replace(PACKED, layers=4, hidden_size=25, ffn_size=20, kept_in_layer=kept)
    plan = make_plan(config(train__global_batch_size=32, zero__stage=0), facts)
    assert facts.inside_layer == 400
    assert plan.eval_tokens == factor * plan.micro_batch_tokens
    assert plan.eval_batch_size == factor * plan.micro_batch_size


def test_compiled_products_are_counted_once_for_every_length_of_a_pack():
    """Packs of 16 examples, which are 8 tokens below the longest on average: about 1 + 2 x 8 x 4 lengths."""
    facts = replace(PACKED, world_size=2, longest=70, mean_tokens=62.0, shared_prefix=0, products=8)
    many, few = (
        make_plan(config(train__global_batch_size=32, train__max_steps=steps, zero__stage=0), facts)
        for steps in (1000, 100)
    )
    same = make_plan(config(train__global_batch_size=32), replace(facts, mean_tokens=70.0))
    counted = [plan.bytes_per_process["compiled products"] for plan in (many, few, same)]
    assert counted == [8 * PRODUCT_CODE_BYTES * lengths for lengths in (65, 65, 1)]


def test_libraries_of_a_process_are_counted_and_leave_less_for_packs():
    roomy = make_plan(config(zero__stage=0), PACKED)
    tight = replace(PACKED, memory_bytes=int(sum(roomy.bytes_per_process.values()) / 0.8))
    with_libraries = make_plan(config(zero__stage=0), replace(tight, runtime_bytes=1 << 20))
    assert with_libraries.bytes_per_process["runtime"] == 1 << 20
    assert with_libraries.micro_batch_tokens < make_plan(config(zero__stage=0), tight).micro_batch_tokens
    assert sum(with_libraries.bytes_per_process.values()) <= 0.8 * tight.memory_bytes
