"""The learning rate's course: by hand, and for any length of a run."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lingo_ds.training.lr_schedule import learning_rate_factor


def factors(*, steps: int, warmup_steps: int, decay: str) -> list[float]:
    return [
        learning_rate_factor(step, steps=steps, warmup_steps=warmup_steps, decay=decay)
        for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [0.5, 1, 0.8, 0.6, 0.4, 0.2]),
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("cosine", [0.5, 1, *((1 + math.cos(math.pi * k / 5)) / 2 for k in (1, 2, 3, 4))]),
    ],
)
def test_learning_rate_by_hand(decay: str, expected: list[float]):
    assert factors(steps=6, warmup_steps=2, decay=decay) == pytest.approx(expected)


@given(
    steps=st.integers(1, 400),
    warmup_steps=st.integers(0, 400),
    decay=st.sampled_from(["linear", "cosine", "constant"]),
)
@settings(deadline=None)
def test_learning_rate_rises_to_the_peak_and_falls_but_never_to_nothing(steps, warmup_steps, decay):
    warmup_steps = min(warmup_steps, steps)
    found = factors(steps=steps, warmup_steps=warmup_steps, decay=decay)
    assert all(0 < factor <= 1 for factor in found)
    rise, fall = found[:warmup_steps], found[max(warmup_steps - 1, 0) :]
    assert rise == sorted(rise) and fall == sorted(fall, reverse=True)
    if warmup_steps:
        assert rise[-1] == 1
