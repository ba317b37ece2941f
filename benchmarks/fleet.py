"""What it gives to train the runs of a suite together, and what bounds it.

1. steps: in this process, a step of 1 to 16 runs in one pass beside as many steps of one run alone. With
   `--quick` this alone.
2. suites: jobs of their own, 1 and 2 processes, whole copies of the backbone and shards (ZeRO-3): examples a
   second while runs take steps, and seconds to the finished suite, of runs that differ by their seed;
   together (`concurrent: auto`) beside one after the other (`concurrent: 1`, over one loaded backbone as
   well), and beside Hugging Face's Trainer with PEFT, one job a run: one is measured, its time times the
   runs. Memory of a process beside what was planned.
3. hosts: the same between two hosts (network namespaces) whose cable `tc` limits; as root.
4. search: 9 settings with 3 seeds each, by successive halving beside every setting to its end: what is
   trained, and whether the choice is the same.

`python -m benchmarks.fleet --gue DIR --backbones DIR/stories260k builtin:english llama-50m --json FILE`; each
process has one thread. With `--keep FOLDER --minutes N` it can be run in pieces: what was measured is kept.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks._common import Kept, parser, say, show
from benchmarks._fleet_jobs import (
    ONE_BY_ONE,
    RIVAL,
    Sharding,
    Suite,
    compare_memory,
    compare_seconds,
    compare_speed,
    train,
)
from benchmarks._fleet_search import Search, compare_choices, compare_work, search
from benchmarks._fleet_steps import StepTimes, compare_steps
from benchmarks._paired_runs import be_a_worker, subset
from benchmarks._workloads import MADE, Work, Workload, make_backbone, prepare
from lingo_ds.models.backbone.builtin import ENGLISH
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.utils import logging as logs
from tests.hosts.hosts import Hosts, missing, two_hosts

PARTS = ("steps", "suites", "hosts", "search")
HERE = (Sharding(1, 0), Sharding(2, 0), Sharding(2, 3))
BETWEEN = tuple(Sharding(2, stage, link) for link in ("1gbit", "100mbit") for stage in (3, 0))
COUNTS, QUICK_COUNTS = (1, 2, 4, 8, 16), (1, 2, 4)
WORKLOAD = Workload((70,), "no prefix", lambda tokenizer: None)
LEARNING_RATE = 1e-4
SEARCHED_SET = "prom_core_tata"

Tables = dict[str, list[dict[str, Any]]]


def main() -> None:
    args = _arguments()
    be_a_worker()
    logs.quieten_libraries()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # takes jobs, hosts and temporary folders along
    with tempfile.TemporaryDirectory(prefix="fleet-") as name:
        bench = Bench(args, (args.keep or Path(name)).resolve())
        parts = {"steps": bench.steps, "suites": bench.suites, "hosts": bench.hosts, "search": bench.search}
        tables: Tables = {}
        for part in args.parts:
            tables |= parts[part]()
        show({title: rows for title, rows in tables.items() if rows}, json_path=args.json)


def _arguments() -> argparse.Namespace:
    given = parser(__doc__)
    names = ", ".join(["builtin:english", *MADE])
    given.add_argument("--parts", nargs="+", choices=PARTS, help="default: all; with --quick: steps")
    given.add_argument("--backbones", nargs="+", help=f"folders, or {names}")
    given.add_argument("--tokens", nargs="+", type=int, default=[20, 70], help="of an example, in steps")
    given.add_argument("--repeats", type=int, default=10, help="timed steps in this process")
    given.add_argument("--batch", type=int, default=8, help="examples of a step of one run")
    given.add_argument("--runs", type=int, default=8, help="runs of a suite")
    given.add_argument("--ways", nargs="+", default=["auto"], help="values of `concurrent` to compare with 1")
    given.add_argument("--steps", type=int, default=20, help="of a run of a suite, beside its first and last")
    given.add_argument("--host-steps", type=int, default=4, help="the same between two hosts")
    given.add_argument("--job-repeats", type=int, default=1, help="times that each suite is trained")
    given.add_argument("--gue", type=Path, help="folder of data sets for the search; default: generated ones")
    given.add_argument("--eval-rows", type=int, default=300, help="rows of dev and of test in the search")
    given.add_argument("--search-steps", type=int, default=60, help="of a run that is trained to its end")
    given.add_argument("--at", nargs="+", type=float, default=[0.1, 0.3], help="when settings are dropped")
    given.add_argument("--seeds", type=int, default=3, help="of each setting in the search")
    given.add_argument("--keep", type=Path, help="folder for what is measured")
    given.add_argument("--minutes", type=float, help="begin nothing more after so many")
    args = given.parse_args()
    args.parts = args.parts or (["steps"] if args.quick else list(PARTS))
    all_sizes = ["llama-260k", "builtin:english", "llama-50m"]
    args.backbones = args.backbones or all_sizes[: 1 if args.quick else None]
    args.repeats = min(args.repeats, 3) if args.quick else args.repeats
    for one in args.backbones:
        if one != "builtin:english" and one not in MADE and not Path(one).is_dir():
            given.error(f"--backbones {one}: is no folder and none of {names}")
    return args


class Bench:
    """The parts, each of which gives its tables, and what they share: backbones, workloads, kept results."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        """Takes the arguments, and the folder for all that is made or measured."""
        self._args, self._folder = args, folder
        self._kept = Kept(folder / "found", minutes=args.minutes)

    def steps(self) -> Tables:
        """Steps in this process."""
        args, rows = self._args, []
        for backbone in self._backbones():
            parameters = read_spec(backbone).parameters
            work = self._work(backbone, steps=1)
            for tokens in args.tokens:
                times = StepTimes(work, self._folder / "steps", tokens=tokens)
                for runs in QUICK_COUNTS if args.quick else COUNTS:
                    what = {"backbone": backbone.name, "batch": args.batch, "tokens": tokens, "runs": runs}
                    measure = partial(times.measure, runs, repeats=args.repeats)
                    if found := self._find(what | {"repeats": args.repeats}, measure):
                        rows.append(compare_steps(what, parameters, found))
        return {"steps in one process: runs together beside one after the other": rows}

    def suites(self) -> Tables:
        """Suites on this host."""
        return self._compare_suites("one host", HERE, steps=self._args.steps)

    def hosts(self) -> Tables:
        """Suites between two hosts."""
        if reason := missing():
            say(f"two hosts are left out: {reason}")
            return {}
        with tempfile.TemporaryDirectory() as name, two_hosts(Path(name) / "net") as hosts:
            return self._compare_suites("two hosts", BETWEEN, steps=self._args.host_steps, hosts=hosts)

    def search(self) -> Tables:
        """A search over settings, on the first backbone."""
        args, data = self._args, "builtin:promoters"
        if args.gue:
            data = str(subset(self._folder, SEARCHED_SET, args.gue / SEARCHED_SET, eval_rows=args.eval_rows))
        backbone = next(self._backbones())
        whole = Search(str(backbone), data, args.seeds, args.search_steps)
        halving = whole._replace(at=tuple(args.at))
        found = [self._find(one.what, self._job(partial(search, one))) for one in (halving, whole)]
        if not all(found):
            return {}
        return {
            "search: successive halving beside every setting to its end": compare_work(halving, *found),
            "search: what was chosen on dev": [compare_choices(halving, *found)],
        }

    def _compare_suites(
        self, where: str, shardings: Sequence[Sharding], *, steps: int, hosts: Hosts | None = None
    ) -> Tables:
        """Suites in every way, which take turns."""
        args = self._args
        works = [self._work(backbone, steps=steps) for backbone in self._backbones()]
        for work in works:
            self._fill_cache(work)
        found: dict[Suite, list[dict[str, Any]]] = {}
        for work, sharding, repeat in product(works, shardings, range(args.job_repeats)):
            for way in (ONE_BY_ONE, *args.ways, RIVAL):
                suite = Suite(work, args.runs, sharding, way)
                measure = self._job(partial(train, suite, hosts=hosts))
                if one := self._find({"repeat": repeat, **suite.what}, measure):
                    found.setdefault(suite, []).append(one)
        return {
            f"{where}: examples/s of all runs": compare_speed(found),
            f"{where}: seconds to the finished suite": compare_seconds(found),
            f"{where}: memory of a process": compare_memory(found),
        }

    def _backbones(self) -> Iterator[Path]:
        """The folders of the backbones, made where need be."""
        for given in self._args.backbones:
            if given == "builtin:english":
                yield ENGLISH
            elif given in MADE:
                made = self._folder / "backbones" / given
                yield made if made.exists() else make_backbone(given, made)
            else:
                yield Path(given).resolve()

    def _work(self, backbone: Path, *, steps: int) -> Work:
        """Examples of 70 bases for a run of so many steps."""
        batch = self._args.batch
        place = self._folder / "work" / f"{backbone.name}-{batch}-{steps}"
        work = prepare(WORKLOAD, backbone, place, batch=batch, steps=steps, learning_rate=LEARNING_RATE)
        assert work is not None, f"70 bases do not fit {backbone}"
        return work

    def _fill_cache(self, work: Work) -> None:
        """Trains one run that no table has: kernels are compiled and data is tokenised at first use."""
        first = Suite(work, 1, Sharding(1, 0), ONE_BY_ONE)
        self._find(first.what, self._job(partial(train, first, hosts=None)))

    def _job(self, run: Callable[[Path], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        """A job in an empty folder, whose neighbours share a cache with it."""

        def job() -> dict[str, Any]:
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                return run(Path(folder))

        return job

    def _find(self, what: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """What is kept, or what is measured now, and how long that took."""
        start = time.perf_counter()
        found = self._kept.get(what, measure)
        words = ", ".join(f"{name} {value}" for name, value in what.items())
        say(f"{words}: {'left out' if found is None else f'{time.perf_counter() - start:.0f} s'}")
        return found


if __name__ == "__main__":
    main()
