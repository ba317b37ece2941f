"""`lingo-ds VERB`, from train to plan: one entry point for every launcher.

Libraries are imported by the functions that need them, so that `--help` and a mistyped option answer at once.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from lingo_ds.commands import options
from lingo_ds.utils.environment import set_library_defaults
from lingo_ds.utils.errors import Mistake, UserError

if TYPE_CHECKING:
    from lingo_ds.config.run_config import PredictConfig, RunConfig
    from lingo_ds.config.suite_config import Suite
    from lingo_ds.distributed.process_group import DistEnv


def main(argv: list[str] | None = None) -> int:
    """Runs one verb. Returns 0 on success, 2 on the user's mistake; the program's faults raise (status 1)."""
    args, settings = _parser().parse_known_args(argv)
    for name, value in vars(args).items():
        if isinstance(value, Path):  # a ~ that no shell has expanded, as in --input=~/new.fa
            setattr(args, name, Path(os.path.expanduser(value)))
    set_library_defaults(os.environ)
    from lingo_ds.distributed.launchers import may_be_rank_zero, reports_first

    try:
        settings = [word for word in settings if not word.startswith("--local_rank")]
        if not VERBS[args.verb].settings:
            _refuse_settings(args.verb, settings)
        return VERBS[args.verb].start(args, settings)
    except UserError as error:
        reports = may_be_rank_zero(os.environ) if error.on_all else reports_first(str(error), os.environ)
        if reports:
            print(error, file=sys.stderr, flush=True)  # noqa: T201
        return 2


def exit_process(status: int) -> NoReturn:
    """Ends a process of a job without Python's own finalisation.

    While that runs, a gloo thread that releases the last collective can abort the process (seen in one of
    some ten ends on a busy machine), and a job that has done all its work would fail.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# -- what each verb starts


def _train(args: argparse.Namespace, settings: list[str]) -> int:
    runs, env = _load_recipe(args, settings), _set_up()
    from lingo_ds.commands import suite, train

    return _start(runs, env, of_run=train.train, of_suite=suite.train_suite)


def _evaluate(args: argparse.Namespace, settings: list[str]) -> int:
    runs, env = _load_recipe(args, settings), _set_up()
    from lingo_ds.commands import evaluate, suite

    return _start(runs, env, of_run=evaluate.evaluate, of_suite=suite.evaluate_suite)


def _plan(args: argparse.Namespace, settings: list[str]) -> int:
    """Plans this job as `train` would run it, or with `--gpu` a job elsewhere."""
    _check_plan_options(args)
    runs, env = _load_recipe(args, settings), _set_up()
    from lingo_ds.commands import plan, suite

    if args.gpu is None:
        return _start(runs, env, of_run=plan.plan, of_suite=suite.plan_suite)
    from lingo_ds.planning.cost.elsewhere import Lengths

    lengths = None
    if args.tokens is not None:
        lengths = Lengths(rows=args.rows, tokens=args.tokens, shared=args.shared or 0)
    given = {name: getattr(args, name) for name in ("hosts", "gpus", "link") if getattr(args, name)}
    request = plan.ElsewhereRequest(gpu=args.gpu, lengths=lengths, json_path=args.json, **given)
    plan.plan_elsewhere(request, runs, env)
    return 0


def _baseline(args: argparse.Namespace, settings: list[str]) -> int:
    after_models = [word for word in args.models if "=" in word]  # settings may follow the last option
    names = [word for word in args.models if "=" not in word] or list(options.BASELINES)
    if wrong := [word for word in names if word not in options.BASELINES]:
        rule, fix = "is no baseline", f"choose among {' and '.join(options.BASELINES)}"
        raise UserError([Mistake("--models", word, rule, fix) for word in wrong], on_all=True)
    runs, env = _load_recipe(args, [*settings, *after_models]), _set_up()
    from lingo_ds.commands import baseline

    of_run = partial(baseline.baseline, names=names)
    return _start(runs, env, of_run=of_run, of_suite=partial(baseline.baseline_suite, names=names))


def _predict(args: argparse.Namespace, settings: list[str]) -> int:
    config, env = _predict_config(args, settings), _set_up()
    from lingo_ds.commands.predict import PredictRequest, predict

    return 0 if predict(PredictRequest(**_asked(args, "backbone")), config, env) else 1


def _explain(args: argparse.Namespace, settings: list[str]) -> int:
    config, env = _predict_config(args, settings), _set_up()
    from lingo_ds.commands.explain import ExplainRequest, explain

    return 0 if explain(ExplainRequest(**_asked(args, "backbone")), config, env) else 1


def _scan(args: argparse.Namespace, settings: list[str]) -> int:
    config, env = _predict_config(args, settings), _set_up()
    from lingo_ds.commands.scan import ScanRequest, scan

    return 0 if scan(ScanRequest(**_asked(args, "backbone")), config, env) else 1


def _export(args: argparse.Namespace, settings: list[str]) -> int:
    env = _set_up()
    from lingo_ds.commands.export import ExportRequest, export

    export(ExportRequest(**_asked(args)), env)
    return 0


def _report(args: argparse.Namespace, settings: list[str]) -> int:
    _set_up()
    from lingo_ds.commands.report import report
    from lingo_ds.utils import logging as logs

    logs.results.print(f"report: {report(args.run)}", highlight=False, markup=False, soft_wrap=True)
    return 0


# -- what several of them need


def _refuse_settings(verb: str, settings: list[str]) -> None:
    """Refuses words that are no options of a verb, which no settings may follow."""
    if settings:
        fix = f"see lingo-ds {verb} --help"
        mistakes = [Mistake("command line", word, f"is no option of {verb}", fix) for word in settings]
        raise UserError(mistakes, on_all=True)


def _load_recipe(args: argparse.Namespace, settings: list[str]) -> "RunConfig | Suite":
    """Reads the recipe at the path of `--config`, or the shipped one of that name."""
    from lingo_ds.config.suite_config import load_runs
    from lingo_ds.utils.resources import resource_path

    path = Path(os.path.expanduser(args.config))
    recipe = path if path.suffix else resource_path("recipes", args.config)
    return load_runs(recipe, [*args.grid, *settings])


def _predict_config(args: argparse.Namespace, settings: list[str]) -> "PredictConfig":
    """How an adapter is computed: the settings after the options, and `--backbone`."""
    from lingo_ds.config.recipe import load_settings
    from lingo_ds.config.run_config import PredictConfig

    if args.backbone is not None:
        settings = [f"backbone.path={args.backbone}", *settings]
    return load_settings(PredictConfig, settings)


def _asked(args: argparse.Namespace, *elsewhere: str) -> dict[str, Any]:
    """The options of a verb by name, but for those that go `elsewhere`."""
    return {name: value for name, value in vars(args).items() if name not in ("verb", *elsewhere)}


def _set_up() -> "DistEnv":
    """Finds this process's place in the job, and routes its log."""
    from lingo_ds.distributed.process_group import detect
    from lingo_ds.utils import logging as logs

    env = detect()
    logs.set_up(rank=env.global_rank, is_main=env.is_main)
    return env


def _start(
    runs: "RunConfig | Suite",
    env: "DistEnv",
    *,
    of_run: "Callable[[RunConfig, DistEnv], object]",
    of_suite: "Callable[[Suite, DistEnv], object]",
) -> int:
    from lingo_ds.config.suite_config import Suite

    if isinstance(runs, Suite):
        of_suite(runs, env)
    else:
        of_run(runs, env)
    return 0


def _check_plan_options(args: argparse.Namespace) -> None:
    """Refuses a description of a job elsewhere where none is planned, and half a description of its data."""
    names = ("hosts", "gpus", "link", "tokens", "rows", "shared", "json")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    if given and args.gpu is None:
        rule, fix = "has no effect without --gpu", "add --gpu, e.g. h200"
        raise UserError([Mistake(f"--{name}", value, rule, fix) for name, value in given.items()])
    for one, other in (("tokens", "rows"), ("rows", "tokens")):
        if one in given and other not in given:
            rule = f"cannot be used without --{other}"
            raise UserError(Mistake(f"--{one}", given[one], rule, "give both, or neither"))


# -- the command line


class Verb(NamedTuple):
    """One verb of the command line.

    Attributes:
        summary: what it does.
        add_options: declares its options.
        start: takes the parsed options and the words that are none; returns the exit status.
        example: the end of a command that works, for `--help`.
        settings: whether settings as `section.field=value` may follow the options.
    """

    summary: str
    add_options: Callable[[argparse.ArgumentParser], None]
    start: Callable[[argparse.Namespace, list[str]], int]
    example: str
    settings: bool = True


VERBS = {
    "train": Verb(
        "Train an adapter, select it on dev, and report on test.",
        options.recipe_options,
        _train,
        "--config quickstart output_dir=runs/first train.num_epochs=2",
    ),
    "evaluate": Verb(
        "Evaluate a run's saved adapter on its test split.",
        options.recipe_options,
        _evaluate,
        "--config runs/quickstart/config.yaml",
    ),
    "baseline": Verb(
        "Compute what needs no language model on a run's splits, and print it beside the run.",
        options.baseline_options,
        _baseline,
        "--config runs/quickstart/config.yaml --models logistic cnn",
    ),
    "predict": Verb(
        "Predict classes, labels or values of new sequences, or what variants change.",
        options.predict_options,
        _predict,
        "--adapter runs/quickstart/adapter --input new.fa --output new.csv",
    ),
    "explain": Verb(
        "Show which bases decide: effects of every change, logos and heat maps, motifs.",
        options.explain_options,
        _explain,
        "--adapter runs/quickstart/adapter --input new.fa --output explained --motifs",
    ),
    "scan": Verb(
        "Slide an adapter over a genome: a track of its answers as bigWig, bedGraph or BED, and peaks.",
        options.scan_options,
        _scan,
        "--adapter runs/quickstart/adapter --genome hg38.fa --contig chr21 --step 50 --output chr21.bw",
    ),
    "export": Verb(
        "Write a saved adapter for other software, or merge it into its backbone.",
        options.export_options,
        _export,
        "--adapter runs/quickstart/adapter --to merged --output merged",
        settings=False,
    ),
    "report": Verb(
        "Write the HTML report of a run or a suite anew from its files.",
        options.report_options,
        _report,
        "runs/quickstart",
        settings=False,
    ),
    "plan": Verb(
        "Print the arithmetic of a run: batch, steps, parameters, memory; with --gpu its speed elsewhere.",
        options.plan_options,
        _plan,
        "--config quickstart --hosts 2 --gpu h200",
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lingo-ds", description="Fine-tune frozen language models on genomes.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, verb in VERBS.items():
        settings = "Settings follow as section.field=value.\n\n" if verb.settings else ""
        verb.add_options(
            verbs.add_parser(
                name,
                help=verb.summary,
                description=verb.summary,
                epilog=f"{settings}example:\n  lingo-ds {name} {verb.example}",
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
