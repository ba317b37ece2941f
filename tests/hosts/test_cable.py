"""Shard groups on two hosts: the bank that one host learns, and on the cable the bytes of the formula."""

import pytest

from tests.hosts.hosts import CableRun, run_over_cable
from tests.ranks.launching import STEPS

SHORT, LONG = 6, 46
EIGHT_BIT = "zero.quantized_weights=true"


def length(steps: int) -> list[str]:
    return [f"train.max_steps={steps}", f"train.eval_steps={steps}"]


@pytest.fixture
def runs(request, start, hosts, overrides, tmp_path, slots, zero) -> list[CableRun]:
    """A run of `SHORT` steps and one of `LONG`."""
    made = []
    if (slots, zero, length(SHORT)) == (1, ["zero.stage=3"], STEPS):
        made.append(request.getfixturevalue("short_run"))
    for steps in (SHORT, LONG)[len(made) :]:
        folder = tmp_path / str(steps)
        folder.mkdir()
        settings = [*overrides, *length(steps), *zero]
        made.append(run_over_cable(start, hosts, folder, settings, slots=slots))
    return made


@pytest.mark.parametrize(
    ("slots", "zero", "weights_on"),
    [
        (1, ["zero.stage=3"], {"between"}),
        pytest.param(1, ["zero.stage=0"], set(), marks=pytest.mark.slow),
        pytest.param(1, ["zero.stage=3", EIGHT_BIT], {"between"}, marks=pytest.mark.slow),
        pytest.param(2, ["zero.stage=3"], {"inside"}, marks=pytest.mark.slow),
        pytest.param(2, ["zero.shard_group=4", "zero.hpz=off"], {"between"}, marks=pytest.mark.slow),
        pytest.param(2, ["zero.shard_group=4"], {"inside"}, marks=pytest.mark.slow),  # a second copy on each
    ],
)
def test_the_cable_carries_what_the_formula_says(runs, one_host, slots, zero, weights_on):
    """Two runs of one length and another: what their steps differ by is on the cable, and little else.

    At most 10 % more for frames, for the output that ssh brings back and for the watchdog.
    """
    short, long = runs
    if EIGHT_BIT not in zero:
        one_host.require_same(short.folder, processes=2 * slots)
    assert (short.traffic["steps"], long.traffic["steps"]) == (SHORT, LONG)
    counted = long.sent - short.sent
    expected = long.traffic["host"]["expected"] - short.traffic["host"]["expected"]
    assert expected > 1_000_000
    print(f"{slots} x 2 {zero}: cable {counted:,}, formula {expected:,}: {counted / expected:.3f}")
    assert 1 <= counted / expected < 1.10
    weights = [kind for kind in long.traffic["collectives"] if kind["what"] == "weights"]
    assert {kind["link"] for kind in weights} == weights_on
