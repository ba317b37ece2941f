"""`lingo-ds evaluate`: a run's saved adapter on its test split again."""

import logging

from lingo_ds.commands.train import Build
from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed.job import job
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.evaluate import Evaluation, evaluate_split, remark_on_answers
from lingo_ds.monitor.report import write_report
from lingo_ds.training.build_model import build_model
from lingo_ds.training.saved_adapter import load_saved
from lingo_ds.training.saved_answers import save_answers
from lingo_ds.training.setup import prepare
from lingo_ds.utils import logging as logs

logger = logging.getLogger(__name__)


def evaluate(config: RunConfig, env: DistEnv) -> dict[str, float | None]:
    """Evaluates the run's saved adapter on its test split; writes `evaluation.json` and the predictions.

    Returns:
        The metrics by name; None where undefined.

    Raises:
        UserError: where the run has no adapter, or it does not belong to this recipe.
    """
    with job(config.to_yaml(), env, output=config.run_dir):
        return evaluate_one(config, env)


def evaluate_one(config: RunConfig, env: DistEnv, *, build: Build = build_model) -> dict[str, float | None]:
    """Does the work of `evaluate` inside a job; `build` makes the model, as in `train_steps`."""
    test = evaluate_saved(config, env, build=build)
    if env.is_main:
        report = {"metrics": {"test": test.metrics}, "metrics_by_output": {"test": test.by_output}}
        write_report(config.run_dir / "evaluation.json", report)
        logs.results.print({name: value and round(value, 4) for name, value in test.metrics.items()})
    return test.metrics


def evaluate_saved(config: RunConfig, env: DistEnv, *, build: Build = build_model) -> Evaluation:
    """Evaluates a run's saved adapter on its test split, and writes its predictions."""
    setup = prepare(config, env)
    model, split = build(setup), setup.data.splits["test"]
    try:
        task = load_saved(model, setup, config.run_dir / "adapter")
        test = evaluate_split(model, split, name="test", task=task, config=config, plan=setup.plan, env=env)
    finally:
        model.detach()
    if remark := remark_on_answers(test, split.labels):
        logger.warning("test: %s", remark)
    if env.is_main:
        save_answers(setup, test, split="test")
    return test
