"""What `benchmarks/roofline.py` counts, against the products of the model by hand."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModel, LlamaConfig

from benchmarks import roofline
from benchmarks._one_step import Work, count, measure
from benchmarks._operators import BACKWARD_PRODUCTS, KINDS, Operator

HIDDEN, KEYS, FFN = 256, 128, 512
PREFIX, LENGTHS, RANK = 9, (3, 4, 7, 7), 8
CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=HIDDEN,
    intermediate_size=FFN,
    num_hidden_layers=roofline.LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
MAPS = [(HIDDEN, HIDDEN)] * 2 + [(KEYS, HIDDEN)] * 2 + [(FFN, HIDDEN)] * 2 + [(HIDDEN, FFN)]
TOKENS = PREFIX + sum(LENGTHS)


def count_and_measure(folder: Path) -> tuple[list[Operator], dict[str, float]]:
    work = Work(folder, PREFIX, LENGTHS, rank=RANK)
    return count(work), measure(work, repeats=2, fused=False)


@pytest.fixture(scope="module")
def seen(cards, tmp_path_factory) -> tuple[list[Operator], dict[str, float]]:
    folder = tmp_path_factory.mktemp("backbone")
    AutoModel.from_config(CONFIG).save_pretrained(folder)
    (value,) = cards.call(count_and_measure, folder)
    return value


def flops(operators: list[Operator], section: str, kind: str) -> int:
    return sum(one.flops for one in operators if (one.section, one.kind) == (section, kind))


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_frozen_maps_multiply_each_token_once_each_way(seen, way):
    expected = sum(2 * TOKENS * d_out * d_in for d_out, d_in in MAPS)
    assert flops(seen[0], f"{way} 1", "frozen products") == expected


def test_attention_is_what_the_causal_mask_leaves(seen):
    pairs = sum(range(1, PREFIX + 1))
    pairs += sum(PREFIX + k for length in LENGTHS for k in range(1, length + 1))
    for way, times in (("forward", 1), ("backward", BACKWARD_PRODUCTS)):
        assert flops(seen[0], f"{way} 1", "attention") == times * 4 * pairs * HIDDEN


def test_adapters_multiply_by_their_rank(seen):
    forward = sum(2 * TOKENS * RANK * (d_out + d_in) for d_out, d_in in MAPS)
    assert flops(seen[0], "forward 1", "adapter products") == pytest.approx(forward, rel=0.05)
    # As much for the gradient of their input, and for their own.
    assert flops(seen[0], "backward 1", "adapter products") == pytest.approx(2 * forward, rel=0.05)


def test_every_section_is_measured_and_shown(seen):
    operators, seconds = seen
    sections = roofline.sections_of(roofline.LAYERS)
    assert set(sections) <= set(seconds) & {one.section for one in operators}
    rows: list[dict[str, Any]] = roofline.table(operators, "h200", dict.fromkeys(sections, 1.0))
    assert {row["what"] for row in rows} == set(sections.values())
    whole = next(row for row in rows if row["operators"] == "all")
    parts = [row for row in rows if row["what"] == whole["what"] and row["operators"] in KINDS]
    assert sum(row["share"] for row in parts) == pytest.approx(1)
    assert whole["number"] == sum(row["number"] for row in parts)
    assert 0 < whole["roofline ms"] <= whole["assumed ms"] and whole["measured ms"] == 1e3
    assert whole["of roofline"] == pytest.approx(whole["roofline ms"] / 1e3)


def test_no_kernel_takes_less_than_the_smallest(seen):
    for limits in roofline.rooflines("h200"):
        tiny = Operator("", "aten.add.Tensor", KINDS[-1], 10, 0)
        assert limits.seconds(tiny) == roofline.SMALLEST_KERNEL
        assert limits.seconds(tiny._replace(bytes=10**9)) == pytest.approx(1e9 / limits.memory)
        assert limits.seconds(tiny._replace(flops=10**12)) == pytest.approx(1e12 / limits.products)
