"""What `tests/gpu` asks of a real card, asked of the pretend one: the questions themselves can be put."""

from pathlib import Path
from typing import Any

import pytest

from tests.gpu import checks
from tests.pretend.runs import STEPS
from tests.unit.models.test_packed_forward import FAMILIES

SOME = ("llama", "gpt2", "bert")


def ask_all(folder: Path) -> dict[str, Any]:
    data = folder / "data"
    return {
        "families": checks.packed_beside_padded({name: FAMILIES[name] for name in SOME}, folder),
        "flash": [checks.flash_takes(size) for size in (8, 128, 12)],
        "waits": checks.waits_of_steps(data, folder / "waits"),
        "memory": checks.memory_of_gathers(data, folder / "gathers", hidden=64, layers=3),
        "twice": checks.train_twice(data, folder / "twice", "train.deterministic=true"),
    }


@pytest.fixture(scope="module")
def seen(cards, folder) -> dict[str, Any]:
    (value,) = cards.call(ask_all, folder)
    return value


@pytest.mark.parametrize("name", SOME)
def test_packs_are_the_padded_batches(seen, name):
    found = seen["families"][name]
    for ours, theirs in zip(found.packed, found.of_cpu, strict=True):
        assert 0 < ours < 3 * theirs + 0.005
    assert 0 < found.padded < 3 * found.of_cpu[0] + 0.005


def test_flash_attention_is_taken_for_the_sizes_of_its_kernel(seen):
    assert seen["flash"] == [True, True, False]


def test_waits_are_counted_step_by_step(seen):
    assert len(seen["waits"]) == STEPS - 2
    assert all(step.packs >= 1 and step.waits == [] for step in seen["waits"])  # operators give no word here


def test_a_layer_has_the_bytes_of_its_maps(seen):
    assert (
        seen["memory"].layer == 2 * 13 * 64**2 and seen["memory"].beyond == 0
    )  # the pretend card counts none


def test_two_runs_are_compared(seen):
    first, second = seen["twice"]
    assert first == second and len(first[0]) == STEPS and len(first[1]) > 1000
