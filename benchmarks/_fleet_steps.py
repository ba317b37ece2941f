"""Steps of several runs in this process: computed together, beside those of one run alone."""

from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks._common import alternate
from benchmarks._training_runs import our_config
from benchmarks._workloads import Work
from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed import process_group
from lingo_ds.training.joint_pass import Work as Step
from lingo_ds.training.joint_pass import compute_step
from lingo_ds.training.session import Session
from lingo_ds.training.setup import prepare
from lingo_ds.training.shared_backbone import SharedBackbone

LEARNING_RATE = 1e-4


class Runs:
    """Runs over one loaded backbone, whose first step is computed again and again."""

    def __init__(self, config: RunConfig):
        self._setup, self._backbone = prepare(config, process_group.detect()), SharedBackbone()
        self._steps: list[Step] = []

    def grow(self, runs: int) -> None:
        """Begins runs until there are so many."""
        while len(self._steps) < runs:
            session = Session(self._setup, self._backbone.build(self._setup))
            self._steps.append(next(session.trainer.steps(1)))
            session.batches.close()

    @property
    def tokens(self) -> int:
        """Tokens of a pass of all runs."""
        return sum(forward.computed_tokens for step in self._steps for forward in step.forwards)

    def advance(self) -> None:
        """Computes a step of all runs in one pass, and moves their banks."""
        for step, own in zip(self._steps, compute_step(self._steps), strict=True):
            step.optimizer_step.move(own, learning_rate=LEARNING_RATE)


class StepTimes:
    """Seconds of a step on one workload: of one run that has the backbone to itself, and of several."""

    def __init__(self, work: Work, folder: Path, *, tokens: int):
        """Takes the workload, a folder for what is written, and the length to which examples are cut."""
        self._work, self._folder, self._tokens = work, folder, tokens

    @cached_property
    def _runs(self) -> tuple[Runs, Runs]:
        """The one run, and those that are computed together."""
        config = our_config(self._work, self._folder, dtype="fp32", stage=0, adapter={})
        own = {"cache_dir": self._folder / "cache", "max_length": self._tokens}
        config = config.model_copy(update={"data": config.data.model_copy(update=own)})
        return Runs(config), Runs(config)

    def measure(self, runs: int, *, repeats: int) -> dict[str, float]:
        """Times a step of one run and a step of so many, in turns; their number may not fall between calls.

        Returns:
            Median seconds `alone`, of the one run, and `together`, and the `tokens` of a pass of all runs.
        """
        alone, together = self._runs
        alone.grow(1)
        together.grow(runs)
        ways = {"alone": alone.advance, "together": together.advance}
        return alternate(ways, repeats=repeats, warmup=2) | {"tokens": together.tokens}


def compare_steps(what: dict[str, Any], parameters: int, found: dict[str, float]) -> dict[str, Any]:
    """A row: examples a second of runs together, and of as many one after the other.

    Args:
        what: `backbone`, and `batch` examples of `tokens` each in a step of each of so many `runs`.
        parameters: of the backbone.
        found: what `StepTimes.measure` gave.
    """
    runs, batch = what["runs"], what["batch"]
    one_by_one, together = batch / found["alone"], runs * batch / found["together"]
    return {
        "backbone": what["backbone"],
        "parameters": parameters,
        "step of a run": f"{batch} x {what['tokens']} tokens",
        "runs": runs,
        "tokens a pass": found["tokens"],
        "unit": "examples/s",
        "ours": together,
        "rival": one_by_one,
        "ratio": together / one_by_one,
    }
