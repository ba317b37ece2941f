"""Hostile input of every kind ends in success or in status 2 with clear lines, and does no harm (seeded)."""

import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import harness
from tests.fuzz.harness import Broken, Case, Kind, endure
from tests.fuzz.kinds import PICKLE, kinds, write_good

IN_CI, SLOW = 500, 20_000
"""Cases of all kinds together."""

KINDS = ("config", "data", "backbone", "adapter", "checkpoint", "sequences")


@pytest.fixture(scope="module")
def good() -> Iterator[Path]:
    """Good inputs of every kind, in a folder whose name always has the same length: cases are cut from it."""
    with tempfile.TemporaryDirectory() as folder:
        write_good(Path(folder))
        yield Path(folder)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def share(kind: Kind, all_kinds: dict[str, Kind], *, of: int) -> int:
    return round(of * kind.share / sum(one.share for one in all_kinds.values()))


def endure_many(name: str, total: int, *, good: Path, cache: Path) -> None:
    """A kind's share of `total` cases, the same at every run; some must end in success, some in a mistake."""
    table = kinds(good)
    kind, statuses = table[name], Counter()

    @settings(
        max_examples=share(kind, table, of=total),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(kind.cases)
    def run(case: Case) -> None:
        statuses[endure(kind, case, good=good, cache=cache)] += 1

    run()
    print(name, dict(statuses))
    assert statuses[0] and statuses[2], f"only one outcome: {dict(statuses)}"


@pytest.mark.parametrize("name", KINDS)
def test_hostile_input(name, good, cache):
    endure_many(name, IN_CI, good=good, cache=cache)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_hostile_input_at_length(name, good, cache):
    endure_many(name, SLOW, good=good, cache=cache)


def test_the_good_inputs_are_good(good, cache):
    """Without a hostile file every kind succeeds, so that what cases change is what they are refused for."""
    for name, kind in kinds(good).items():
        if kind.base:
            assert endure(kind, Case({}), good=good, cache=cache) == 0, name


def _say(*lines: str) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    return 2


HARMS = {
    "reached the user": lambda place: {}["no such key"],
    "pickle.find_class": lambda place: pickle.loads(PICKLE),
    "torch.load": lambda place: torch.load("x"),
    "os.system": lambda place: os.system("true"),
    "subprocess": lambda place: subprocess.run(["true"]),
    "socket": lambda place: socket.create_connection(("127.0.0.1", 9)),
    "for writing": lambda place: (place.good / "new").write_text("x"),
    "os.mkdir": lambda place: (place.work / "../../../new").mkdir(),
    "opens": lambda place: (place.inputs / "train.csv").open("a"),
    "os.remove": lambda place: (place.inputs / "train.csv").unlink(),
    "runs code": lambda place: exec(compile("1", str(place.inputs / "code.py"), "exec")),
    "exit status 1": lambda place: 1,
    "without a word": lambda place: 2,
    "not a clear line": lambda place: _say("Traceback (most recent call last):"),
    "not a clear": lambda place: _say("error: a: \x1b[2J: c: d"),
    "not a": lambda place: _say("error: a: b: c: " + "d" * 10_000),
    "lines": lambda place: _say(*["error: a: b: c: d"] * 1000),
}


@pytest.mark.parametrize("says", HARMS)
def test_harm_is_noticed(says, good, cache):
    kind = Kind(st.none(), "data", lambda case, place: HARMS[says](place), share=1)
    with pytest.raises(Broken, match=says):
        endure(kind, Case({}), good=good, cache=cache)


def test_what_does_not_end_is_ended(good, cache, monkeypatch):
    monkeypatch.setattr(harness, "SECONDS", 1)
    kind = Kind(st.none(), None, lambda case, place: time.sleep(60), share=1)
    with pytest.raises(Broken, match="still running"):
        endure(kind, Case({}), good=good, cache=cache)
