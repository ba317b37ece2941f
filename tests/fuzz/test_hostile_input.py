"""Hostile input of every kind ends in success or in status 2 with clear lines, and does no harm (seeded)."""

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.harness import Case, Kind, endure
from tests.fuzz.kinds import kinds, write_good

IN_CI, SLOW = 500, 20_000
"""Cases of all kinds together."""

KINDS = ("config", "data", "backbone", "adapter")


@pytest.fixture(scope="module", autouse=True)
def _logging_as_before() -> Iterator[None]:
    """The command line routes the package's log; other tests look at it where it was."""
    package = logging.getLogger("lingo_ds")
    before = package.handlers, package.level, package.propagate
    yield
    package.handlers, level, package.propagate = before
    package.setLevel(level)


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
