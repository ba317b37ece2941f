"""At which learning rates does training lose what it had learned? The share of such runs, by form of adapter.

Every run is planned for `--steps` and trained for its first `--until`, in which the rate is near its peak. A
run has collapsed when the mean loss of 50 steps is back above 0.98 of chance, which is ln(classes), after it
was below 0.95 of it; it is stuck when it never was. Neither dev nor test is looked at. Masks have no part in
it, so that there are none: what differs is form, rank and alpha.

Runs over one backbone are trained together. Each is kept in `--results` once it has ended, and a second call
repeats none: `python -m benchmarks.collapse --gue DIR --sets prom_core_notata --backbones DIR --seeds 20
--results FILE`; without arguments the embedded data and backbone.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks._common import circumstances, parser, say, show
from benchmarks._paired_runs import Run, add_arguments, be_a_worker, data_path, parse, run_config
from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed import process_group
from lingo_ds.training.fleet import Steps
from lingo_ds.training.joint_pass import Work, compute_step
from lingo_ds.training.session import Session
from lingo_ds.training.setup import prepare
from lingo_ds.training.shared_backbone import SharedBackbone
from lingo_ds.training.trainer import StepInfo
from lingo_ds.utils.files import atomic_write

WINDOW, LEARNED, LOST = 50, 0.95, 0.98
"""Steps of a mean loss; shares of chance below which a run has learned, above which it has lost that."""

SHOWN = 25
"""Steps of each mean loss that is kept of a run."""

NO_MASKS = {"rank_sampling": {"mode": "off"}}
FAST = {"train": {"adam_betas": [0.9, 0.99]}}
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"adapter": {"method": "lora", "rank": 4, "alpha": 8}},
    "LoRA, rank 8, alpha 8": {"adapter": {"method": "lora", "rank": 8, "alpha": 8}},
    "LoRA, rank 8, alpha 16": {"adapter": {"method": "lora", "rank": 8, "alpha": 16}},
    "three factors, rank 4, alpha 8": {"adapter": {"rank": 4, "alpha": 8}},
    "three factors, alpha 16": {"adapter": {"rank": 8, "alpha": 16}},
    "three factors, alpha 8": {"adapter": {"rank": 8, "alpha": 8}},
    "AdaLoRA's start, alpha 16": {"adapter": {"rank": 8, "alpha": 16, "init": "adalora"}},
    "LoRA, beta2 0.99": {"adapter": {"method": "lora", "rank": 4, "alpha": 8}, **FAST},
    "three factors, alpha 16, beta2 0.99": {"adapter": {"rank": 8, "alpha": 16}, **FAST},
    "three factors, alpha 8, beta2 0.99": {"adapter": {"rank": 8, "alpha": 8}, **FAST},
}
DEFAULT = ("LoRA", "three factors, alpha 16", "three factors, alpha 8", "AdaLoRA's start, alpha 16")


def main() -> None:
    args = _arguments()
    args.runs.mkdir(parents=True, exist_ok=True)
    results = Results(args.results)
    runs = [
        _run(args, backbone, data, method, rate, seed)
        for backbone in args.backbones
        for seed in range(args.seeds)
        for data in args.sets
        for rate in args.rates
        for method in args.methods
    ]
    todo = [run for run in runs if identity(run, args.until) not in results]
    say(f"{len(todo)} runs to do, {len(runs) - len(todo)} known")
    be_a_worker()
    for backbone in args.backbones:
        mine = [run for run in todo if run.backbone == Path(backbone).name]
        for run, losses in losses_of(mine, args):
            results.add(identity(run, args.until), losses)
            say(f"{run.data} {run.method}, lr {run.learning_rate:g}, seed {run.seed}: {outcome(losses)}")
    show({"runs that collapsed + got stuck / all": table(results.runs)}, json_path=args.json)
    if args.picture:
        draw(results.runs, args.picture, rate=max(args.rates))


def _arguments() -> argparse.Namespace:
    given = parser(__doc__)
    add_arguments(given, backbone="builtin:tiny", runs="collapse", steps=1000)
    given.set_defaults(batch=16, seeds=20)
    given.add_argument("--methods", nargs="+", default=list(DEFAULT), choices=METHODS)
    given.add_argument("--rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3, 8e-3])
    given.add_argument("--until", type=int, default=200, help="steps of a run that are trained")
    given.add_argument("--together", type=int, default=8, help="runs that are trained together")
    given.add_argument("--minutes", type=float, help="no run begins after so many")
    given.add_argument("--picture", type=Path, help="draw the losses at the highest rate there")
    given.add_argument("--results", type=Path, default=Path("runs/collapse/results.json"))
    args = parse(given)
    if args.until >= args.steps:
        given.error(f"--until {args.until}: only the first steps of --steps {args.steps} are trained")
    return args


def _run(args: argparse.Namespace, backbone: str, data: str, method: str, rate: float, seed: int) -> Run:
    own = METHODS[method]
    config = run_config(args, "collapse", seed, backbone, rate, data={"path": data_path(args, data)})
    config["train"] |= {"eval_steps": args.steps, **own.get("train", {})}
    return Run(
        Path(backbone).name, data, method, rate, seed, {**config, "adapter": own["adapter"], **NO_MASKS}
    )


def identity(run: Run, until: int) -> dict[str, Any]:
    """What a run is known by in the file of results: all that differs between the runs in it."""
    named = {name: getattr(run, name) for name in ("backbone", "data", "method", "learning_rate", "seed")}
    train = run.config["train"]
    return named | {"batch": train["global_batch_size"], "steps": train["max_steps"], "until": until}


class Results:
    """The file of results: every run with its outcome, and its mean losses.

    Attributes:
        runs: all of them.
    """

    def __init__(self, path: Path):
        self._path = path
        self.runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []

    def __contains__(self, what: Mapping[str, Any]) -> bool:
        return any(all(run[name] == value for name, value in what.items()) for run in self.runs)

    def add(self, what: Mapping[str, Any], losses: Sequence[float]) -> None:
        """Adds a run with its loss at every step, and writes the file."""
        means = [round(mean, 4) for mean in _means(losses, SHOWN)[::SHOWN]]
        self.runs.append({**what, "trained": len(losses), "outcome": outcome(losses), "losses": means})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(json.dumps(run) for run in self.runs)
        text = f'{{"circumstances": {json.dumps(circumstances())},\n"runs": [\n{lines}\n]}}\n'
        atomic_write(self._path, lambda aside: aside.write_text(text))


def losses_of(runs: Sequence[Run], args: argparse.Namespace) -> Iterator[tuple[Run, list[float]]]:
    """Trains runs over one backbone, some at a time; yields each with its losses once it has ended."""
    backbone, waiting, began = SharedBackbone(), list(runs), time.monotonic()
    seats: list[_Seat] = []
    while waiting or seats:
        while waiting and len(seats) < args.together:
            seats.append(_Seat(waiting.pop(0), backbone, args.until))
        for seat, measured in zip(seats, compute_step([seat.work for seat in seats]), strict=True):
            seat.advance(measured)
        for seat in [seat for seat in seats if seat.over]:
            seats.remove(seat)
            seat.close()
            yield seat.run, seat.losses
        if args.minutes is not None and time.monotonic() > began + 60 * args.minutes:
            waiting.clear()


class _Seat:
    """A run that advances, without evaluations and files.

    Attributes:
        run: which.
        losses: of every step so far.
        work: what its next step needs.
        over: whether enough steps were taken, or the run has collapsed.
    """

    def __init__(self, run: Run, backbone: SharedBackbone, until: int):
        setup = prepare(RunConfig(**run.config), process_group.detect())
        self.run, self._until = run, until
        self.losses: list[float] = []
        self._session = Session(setup, backbone.build(setup), alone=False)
        self._session.trainer.hooks.clear()
        self._session.trainer.add_hook(self._note)
        self._steps: Steps[Any] = self._session.trainer.steps(1)
        self.work: Work = next(self._steps)

    def _note(self, info: StepInfo) -> None:
        self.losses.append(info.stats.loss)

    @property
    def over(self) -> bool:
        return len(self.losses) >= self._until or outcome(self.losses) == "collapsed"

    def advance(self, measured: Sequence[float]) -> None:
        """Takes a step."""
        self.work = self._steps.send(measured)

    def close(self) -> None:
        """Makes room on the backbone."""
        self._steps.close()
        self._session.batches.close()
        self._session.model.detach()


def outcome(losses: Sequence[float], *, chance: float = math.log(2)) -> str:
    """What became of a run by its loss at every step: `learned`, `stuck` or `collapsed`."""
    learned = False
    for mean in _means(losses, WINDOW):
        learned = learned or mean < LEARNED * chance
        if learned and mean > LOST * chance:
            return "collapsed"
    return "learned" if learned else "stuck"


def _means(losses: Sequence[float], window: int) -> list[float]:
    """The mean of every so many losses in a row."""
    return [sum(losses[end - window : end]) / window for end in range(window, len(losses) + 1)]


def table(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each backbone, set and method: by rate, runs that collapsed + got stuck / all."""
    rates = sorted({run["learning_rate"] for run in runs})
    rows = []
    for cell in dict.fromkeys((run["backbone"], run["data"], run["method"]) for run in runs):
        mine = [run for run in runs if (run["backbone"], run["data"], run["method"]) == cell]
        row = dict(zip(("backbone", "set", "adapter"), cell, strict=True))
        for rate in rates:
            ends = [run["outcome"] for run in mine if run["learning_rate"] == rate]
            row[f"{rate:g}"] = (
                f"{ends.count('collapsed')} + {ends.count('stuck')} / {len(ends)}" if ends else ""
            )
        rows.append(row)
    return rows


def draw(runs: Sequence[Mapping[str, Any]], path: Path, *, rate: float) -> None:
    """Draws the loss of every run at one rate, a panel for each of the methods of `DEFAULT`."""
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    panels = figure.subplots(1, len(DEFAULT), sharey=True)
    for method, panel in zip(DEFAULT, panels, strict=True):
        mine = [run for run in runs if (run["method"], run["learning_rate"]) == (method, rate)]
        for run in mine:
            lost = run["outcome"] != "learned"
            steps = range(SHOWN, SHOWN * len(run["losses"]) + 1, SHOWN)
            panel.plot(steps, run["losses"], color="#c0392b" if lost else "#7f8c8d", lw=1.2)
        lost = sum(run["outcome"] != "learned" for run in mine)
        panel.axhline(math.log(2), color="black", lw=0.6, ls=":")
        panel.set_title(f"{method}: {lost} of {len(mine)} lost", fontsize=8)
        panel.set_xlabel("step")
    panels[0].set_ylabel(f"loss, mean of {SHOWN} steps")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
