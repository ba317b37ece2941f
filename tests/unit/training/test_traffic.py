"""Sums and tags of the bytes that steps sent."""

from lingo_ds.distributed.traffic import CollectiveKind, Tally
from lingo_ds.planning.traffic import Collective
from lingo_ds.training.traffic import StepTraffic, TrafficSum, traffic_scalars

BANK, GATHER = CollectiveKind("all_reduce", "bank", 4, 2), CollectiveKind("all_gather", "forward", 2, 1)
STEP = StepTraffic(
    counted={BANK: Tally(1, 100, 150), GATHER: Tally(3, 60, 30)},
    expected=(Collective("all_reduce", "bank", 4, 2, 100), Collective("all_gather", "forward", 2, 1, 40)),
)


def test_tags_tell_bytes_by_link_and_purpose_and_what_the_formula_lacks():
    assert traffic_scalars(STEP) == {
        "traffic/inside_bytes": 30,
        "traffic/between_bytes": 150,
        "traffic/host_bytes": 150,
        "traffic/between_bank_bytes": 150,
        "traffic/inside_forward_bytes": 30,
        "traffic/unforeseen_bytes": 10,  # a gather of 40 bytes by two processes sends 20 each
    }


def test_steps_add_up():
    total = TrafficSum()
    for _ in range(3):
        total.add(STEP)
    report = total.report()
    assert report["steps"] == 3
    assert report["sent"] == {
        "inside": {"counted": 90, "expected": 60, "per_step": 30.0},
        "between": {"counted": 450, "expected": 450, "per_step": 150.0},
    }
    assert report["host"] == {"expected": 450, "per_step": 150.0}
    gather, bank = report["collectives"]
    assert gather == {**GATHER._asdict(), "link": "inside", "calls": 9, "payload": 180, "sent": 90}
    assert bank == {**BANK._asdict(), "link": "between", "calls": 3, "payload": 300, "sent": 450}


def test_no_step_is_no_division_by_zero():
    assert TrafficSum().report()["host"] == {"expected": 0, "per_step": 0.0}
