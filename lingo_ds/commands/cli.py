"""`lingo-ds train|evaluate|predict|export|plan`: one entry point for every launcher.

Libraries are imported by the functions that need them, so that `--help` and a mistyped option answer at once.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from lingo_ds.utils.environment import set_library_defaults
from lingo_ds.utils.errors import Mistake, UserError

if TYPE_CHECKING:
    from lingo_ds.config.run_config import RunConfig
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
        start = VERBS[args.verb].start
        return start(args, [word for word in settings if not word.startswith("--local_rank")])
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


def _predict(args: argparse.Namespace, settings: list[str]) -> int:
    from lingo_ds.config.recipe import load_settings
    from lingo_ds.config.run_config import PredictConfig

    if args.backbone is not None:
        settings = [f"backbone.path={args.backbone}", *settings]
    config, env = load_settings(PredictConfig, settings), _set_up()
    from lingo_ds.commands.predict import PredictRequest, predict

    asked = {name: value for name, value in vars(args).items() if name not in ("verb", "backbone")}
    return 0 if predict(PredictRequest(**asked), config, env) else 1


def _export(args: argparse.Namespace, settings: list[str]) -> int:
    if settings:
        fix = "see lingo-ds export --help"
        mistakes = [Mistake("command line", word, "is no option of export", fix) for word in settings]
        raise UserError(mistakes, on_all=True)
    env = _set_up()
    from lingo_ds.commands.export import ExportRequest, export

    asked = {name: value for name, value in vars(args).items() if name != "verb"}
    export(ExportRequest(**asked), env)
    return 0


# -- what several of them need


def _load_recipe(args: argparse.Namespace, settings: list[str]) -> "RunConfig | Suite":
    """Reads the recipe at the path of `--config`, or the shipped one of that name."""
    from lingo_ds.config.suite_config import load_runs
    from lingo_ds.utils.resources import resource_path

    path = Path(os.path.expanduser(args.config))
    recipe = path if path.suffix else resource_path("recipes", args.config)
    return load_runs(recipe, [*args.grid, *settings])


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


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def _grid_setting(text: str) -> str:
    """`NAME=V1,V2` as the setting of a suite that it stands for."""
    name, equals, values = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=V1,V2, e.g. adapter.rank=4,8")
    return f"grid.{name}={values if values.startswith('[') else f'[{values}]'}"


def _recipe_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    help = "A recipe: a YAML file, or the name of a shipped one, e.g. quickstart."
    add("--config", required=True, metavar="FILE", help=help)
    help = (
        "Values of one setting to try, e.g. train.learning_rate=1e-4,3e-4; the best on dev is chosen. "
        "Several --grid try all combinations."
    )
    add("--grid", action="append", default=[], type=_grid_setting, metavar="NAME=V1,V2", help=help)


def _plan_options(parser: argparse.ArgumentParser) -> None:
    _recipe_options(parser)
    about = (
        "Prints memory, FLOPs, bytes, seconds and advice. Of the backbone only config.json and the\n"
        "tokenizer are read; with --tokens and --rows neither tokenizer nor data."
    )
    add = parser.add_argument_group("a job on other machines", about).add_argument
    absent = "when the data is not on this machine"
    add("--gpu", metavar="NAME", help="The kind of GPU, e.g. h200, h100, a100 or l40s.")
    add("--hosts", type=_count, metavar="N", help="Number of hosts (default: 1).")
    add("--gpus", type=_count, metavar="N", help="Number of GPUs in each host (default: 8).")
    add("--link", metavar="RATE", help="Network of each host, e.g. 8x400Gb for eight cards (default: 400Gb).")
    add("--tokens", type=_count, metavar="N", help=f"Tokens per example, {absent}; needs --rows.")
    add("--rows", type=_count, metavar="N", help=f"Number of training examples, {absent}; needs --tokens.")
    shared = "How many of the --tokens are a prefix that all examples have in common (default: 0)."
    add("--shared", type=int, metavar="N", help=shared)
    add("--json", type=Path, metavar="FILE", help="A file to write plan, estimate and advice to.")


def _adapter_option(parser: argparse.ArgumentParser) -> None:
    help = "The folder of a run, or the adapter/ in it."
    parser.add_argument("--adapter", required=True, type=Path, metavar="DIR", help=help)


def _predict_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _adapter_option(parser)
    source = (
        "Sequences in .csv .tsv .jsonl .fa .fasta .fna (also .gz) or .parquet; with --genome variants in "
        ".vcf or intervals in .bed .narrowPeak .broadPeak (also .gz). FASTA and VCF may have any name."
    )
    add("--input", required=True, type=Path, dest="source", metavar="FILE", help=source)
    target = "The file to write: .csv .tsv (also .gz) or .parquet."
    add("--output", required=True, type=Path, dest="target", metavar="FILE", help=target)
    column = "The column that holds the DNA (default: sequence)."
    add("--sequence-column", default="sequence", metavar="NAME", help=column)
    column = "The column that holds the ids (default: id if there is one, else rows are numbered from 0)."
    add("--id-column", metavar="NAME", help=column)
    genome = "The genome to which the positions of variants or intervals refer."
    add("--genome", type=Path, metavar="FASTA", help=genome)
    window = (
        "Bases to read around each variant (default: as many as the training sequences had) or around the "
        "centre of each interval (default: as in training)."
    )
    add("--window", type=int, metavar="BASES", help=window)
    flank = "Bases to read on both sides of each interval, instead of a window (default: as in training)."
    add("--flank", type=int, metavar="BASES", help=flank)
    center = "What the window of an interval lies around (default: as in training)."
    add("--center", choices=["middle", "summit"], help=center)
    strict = "Refuse a file that has rows which do not fit the genome, instead of skipping these rows."
    add("--strict", action="store_true", help=strict)
    add("--backbone", metavar="PATH", help="Folder or hub id of the backbone, if it has moved.")
    add("--overwrite", action="store_true", help="Replace the output file if it exists.")


def _export_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _adapter_option(parser)
    to = "The format: an AdaLoRA or LoRA folder of PEFT, or a whole Hugging Face model."
    add("--to", required=True, choices=["adalora", "lora", "merged"], help=to)
    add("--output", required=True, type=Path, metavar="DIR", help="The folder to write.")
    add("--backbone", metavar="PATH", help="Folder or hub id of the backbone, if it has moved.")
    dtype = "Data type of merged weights (default: the backbone's own)."
    add("--dtype", choices=["fp32", "bf16", "fp16"], help=dtype)
    size = "Size of the largest file of a merged model (default: 4)."
    add("--shard-gb", type=float, default=4.0, metavar="GB", help=size)
    license = "License for the model card, as the Hugging Face hub names it (default: other)."
    add("--license", default="other", metavar="NAME", help=license)
    add("--overwrite", action="store_true", help="Replace an earlier export.")


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
        _recipe_options,
        _train,
        "--config quickstart output_dir=runs/first train.num_epochs=2",
    ),
    "evaluate": Verb(
        "Evaluate a run's saved adapter on its test split.",
        _recipe_options,
        _evaluate,
        "--config runs/quickstart/config.yaml",
    ),
    "predict": Verb(
        "Predict classes, labels or values of new sequences, or what variants change.",
        _predict_options,
        _predict,
        "--adapter runs/quickstart/adapter --input new.fa --output new.csv",
    ),
    "export": Verb(
        "Write a saved adapter for other software, or merge it into its backbone.",
        _export_options,
        _export,
        "--adapter runs/quickstart/adapter --to merged --output merged",
        settings=False,
    ),
    "plan": Verb(
        "Print the arithmetic of a run: batch, steps, parameters, memory; with --gpu its speed elsewhere.",
        _plan_options,
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
