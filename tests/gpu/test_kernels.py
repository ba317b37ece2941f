"""What kernels of a real card compute, how often the host waits for it, and what it holds at once."""

from pathlib import Path

import pytest
import yaml

from tests.gpu.checks import FamilySeen, flash_takes, memory_of_gathers, packed_beside_padded, waits_of_steps
from tests.unit.models.test_packed_forward import FAMILIES

pytestmark = pytest.mark.gpu
BUDGETS = yaml.safe_load((Path(__file__).parents[1] / "pretend" / "budgets.yaml").read_text())
UNIT = 1 << 21
"""torch's allocator gives memory in blocks of at least so many bytes."""


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, FamilySeen]:
    return packed_beside_padded(FAMILIES, tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("name", FAMILIES)
def test_packs_by_flash_attention_are_the_padded_batches(families, name):
    seen = families[name]
    for ours, theirs in zip(seen.packed, seen.of_cpu, strict=True):
        assert ours < 3 * theirs + 0.005  # rounding, which another order of sums changes
    assert seen.padded < 3 * seen.of_cpu[0] + 0.005


def test_flash_attention_is_taken():
    assert flash_takes(8) and flash_takes(128) and not flash_takes(12)


def test_a_step_waits_no_more_often_than_its_budget(folder):
    """Torch's own count of waits, beside the list that the pretend card keeps."""
    most = sum(times for part in ("gradient", "update") for times, *_ in BUDGETS["waits"][part])
    steps = waits_of_steps(folder / "data", folder / "waits")
    assert len(steps) >= 3
    for step in steps[:-1]:  # the last one is evaluated too
        assert len(step.waits) <= most, step.waits


def test_three_layers_are_on_the_card_at_once(folder):
    seen = memory_of_gathers(folder / "data", folder / "gathers")
    assert seen.layer / 2 < seen.beyond <= 3 * seen.layer + 16 * UNIT
