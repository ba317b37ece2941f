"""Shard groups on two hosts: the bank that one host learns, and on the cable what the formula says."""

import json

import pytest

from tests.hosts.hosts import missing, over_hosts, two_hosts

if reason := missing():
    pytest.skip(f"two hosts: {reason}", allow_module_level=True)

SHORT, LONG = 6, 46
EIGHT_BIT = "zero.quantized_weights=true"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with two_hosts(tmp_path_factory.mktemp("hosts") / "net") as made:
        yield made


def cable_and_report(start, hosts, folder, overrides, *, slots: int, steps: int) -> tuple[int, dict]:
    """Bytes that the first host put on the cable in a run, and what the run reports of its traffic."""
    before = hosts.sent_bytes(0)
    length = [f"train.max_steps={steps}", f"train.eval_steps={steps}", f"output_dir={folder / 'run'}"]
    ended = over_hosts(start, hosts, folder, [*overrides, *length], slots=slots).wait(400)
    assert ended.status == 0, ended.output
    traffic = json.loads((folder / "run" / "report.json").read_text())["traffic"]
    assert traffic["steps"] == steps
    return hosts.sent_bytes(0) - before, traffic


@pytest.mark.parametrize(
    ("slots", "zero", "weights_on"),
    [
        (1, ["zero.stage=0"], set()),
        pytest.param(1, ["zero.stage=3"], {"between"}, marks=pytest.mark.slow),
        pytest.param(1, ["zero.stage=3", EIGHT_BIT], {"between"}, marks=pytest.mark.slow),
        pytest.param(2, ["zero.stage=3"], {"inside"}, marks=pytest.mark.slow),
        pytest.param(2, ["zero.shard_group=4", "zero.hpz=off"], {"between"}, marks=pytest.mark.slow),
        pytest.param(2, ["zero.shard_group=4"], {"inside"}, marks=pytest.mark.slow),  # a second copy on each
    ],
)
def test_the_cable_carries_what_the_formula_says(
    start, hosts, overrides, one_host, tmp_path, slots, zero, weights_on
):
    """Two runs of one length and another: what their steps differ by is on the cable, and little else.

    At most 10 % more for frames, for the output that ssh brings back and for what keeps watch.
    """
    runs = []
    for steps in (SHORT, LONG):
        folder = tmp_path / str(steps)
        folder.mkdir()
        runs.append(cable_and_report(start, hosts, folder, [*overrides, *zero], slots=slots, steps=steps))
    if EIGHT_BIT not in zero:
        one_host.require_same(tmp_path / str(SHORT) / "run", processes=2 * slots)
    (short, expected_short), (long, expected_long) = runs
    expected = expected_long["host"]["expected"] - expected_short["host"]["expected"]
    assert expected > 1_000_000
    print(
        f"{slots} x 2 {zero}: cable {long - short:,}, formula {expected:,}: {(long - short) / expected:.3f}"
    )
    assert 1 <= (long - short) / expected < 1.10
    weights = [kind for kind in expected_long["collectives"] if kind["what"] == "weights"]
    assert {kind["link"] for kind in weights} == weights_on
