"""`lingo-ds train|evaluate|predict|export|plan`: one entry point for every launcher."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn


def main(argv: list[str] | None = None) -> int:
    """Runs one verb. Returns 0 on success, 2 on the user's mistake; the program's faults raise (status 1)."""
    args, overrides = _parser().parse_known_args(argv)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost process is told in our words
    from lingo_ds.distributed.launchers import may_be_rank_zero
    from lingo_ds.utils.errors import UserError

    try:
        return args.start(args, [word for word in overrides if not word.startswith("--local_rank")])
    except UserError as error:
        if not error.on_all or may_be_rank_zero(os.environ):
            print(error, file=sys.stderr, flush=True)  # noqa: T201
        return 2


def exit_process(status: int) -> NoReturn:
    """Ends a process of a job without Python's own finalisation.

    While that runs, a gloo thread that lets go of the last collective can abort the process (seen in one of
    some ten ends on a busy machine), and a job that has done all its work would fail.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _by_recipe(args: argparse.Namespace, overrides: list[str]) -> int:
    """Verbs that follow a recipe."""
    from lingo_ds.config.suite_config import Suite, load_runs
    from lingo_ds.distributed.process_group import detect
    from lingo_ds.utils import logging as logs
    from lingo_ds.utils.resources import resource_path

    path = Path(args.config)
    if not path.suffix:
        path = resource_path("recipes", args.config)
    runs, env = load_runs(path, overrides), detect()
    logs.set_up(rank=env.global_rank, is_main=env.is_main)
    from lingo_ds.commands import evaluate, plan, suite, train

    of_run = {"train": train.train, "evaluate": evaluate.evaluate, "plan": plan.plan}
    of_suite = {"train": suite.train_suite, "evaluate": suite.evaluate_suite, "plan": suite.plan_suite}
    (of_suite if isinstance(runs, Suite) else of_run)[args.verb](runs, env)
    return 0


def _plan(args: argparse.Namespace, overrides: list[str]) -> int:
    """Of this job as `train` would run it, or with `--gpu` of one elsewhere."""
    if args.gpu is None:
        for name in ("hosts", "gpus", "link", "tokens", "rows", "shared", "json"):
            if getattr(args, name) is not None:
                _refuse(
                    f"--{name}", getattr(args, name), "means nothing without --gpu", "add --gpu, e.g. h200"
                )
        return _by_recipe(args, overrides)
    if (args.tokens is None) != (args.rows is None):
        given, other = ("tokens", "rows") if args.rows is None else ("rows", "tokens")
        _refuse(f"--{given}", getattr(args, given), f"stands without --{other}", "give both, or neither")
    from lingo_ds.commands.plan import Elsewhere, plan_elsewhere
    from lingo_ds.config.suite_config import load_runs
    from lingo_ds.distributed.process_group import detect
    from lingo_ds.planning.cost.elsewhere import Lengths
    from lingo_ds.utils import logging as logs
    from lingo_ds.utils.resources import resource_path

    path = Path(args.config)
    if not path.suffix:
        path = resource_path("recipes", args.config)
    env = detect()
    logs.set_up(rank=env.global_rank, is_main=env.is_main)
    lengths = None
    if args.tokens is not None:
        lengths = Lengths(rows=args.rows, tokens=args.tokens, shared=args.shared or 0)
    given = {name: getattr(args, name) for name in ("hosts", "gpus", "link") if getattr(args, name)}
    asked = Elsewhere(gpu=args.gpu, lengths=lengths, json_path=args.json, **given)
    plan_elsewhere(load_runs(path, overrides), env, asked)
    return 0


def _refuse(where: str, value: object, rule: str, fix: str) -> NoReturn:
    from lingo_ds.utils.errors import Mistake, UserError

    raise UserError(Mistake(where, value, rule, fix))


def _predict(args: argparse.Namespace, overrides: list[str]) -> int:
    from lingo_ds.config.recipe import load_settings
    from lingo_ds.config.run_config import PredictConfig
    from lingo_ds.distributed.process_group import detect
    from lingo_ds.utils import logging as logs

    if args.backbone is not None:
        overrides = [f"backbone.path={args.backbone}", *overrides]
    config, env = load_settings(PredictConfig, overrides), detect()
    logs.set_up(rank=env.global_rank, is_main=env.is_main)
    from lingo_ds.commands.predict import predict

    given = {name: value for name, value in vars(args).items() if name not in ("verb", "start", "backbone")}
    return 0 if predict(config, env, **given) else 1


def _export(args: argparse.Namespace, overrides: list[str]) -> int:
    from lingo_ds.distributed.process_group import detect
    from lingo_ds.utils import logging as logs
    from lingo_ds.utils.errors import Mistake, UserError

    if overrides:
        fix = "see lingo-ds export --help"
        raise UserError([Mistake("command line", one, "is no option", fix) for one in overrides], on_all=True)
    env = detect()
    logs.set_up(rank=env.global_rank, is_main=env.is_main)
    from lingo_ds.commands.export import export

    export(env, **{name: value for name, value in vars(args).items() if name not in ("verb", "start")})
    return 0


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="YAML file, or the name of a shipped recipe")


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _recipe_arguments(parser)
    elsewhere = parser.add_argument_group(
        "a job on other machines",
        "Memory, FLOPs, bytes, seconds and advice. Of the backbone only config.json and the tokenizer are "
        "read; with --tokens and --rows neither tokenizer nor data.",
    )
    elsewhere.add_argument("--gpu", metavar="NAME", help="kind of GPU, e.g. h200, h100, a100 or l40s")
    elsewhere.add_argument("--hosts", type=_count, metavar="N", help="number of hosts (default: 1)")
    elsewhere.add_argument("--gpus", type=_count, metavar="N", help="GPUs of each host (default: 8)")
    elsewhere.add_argument(
        "--link", metavar="RATE", help="network of each host, e.g. 8x400Gb for eight cards (default: 400Gb)"
    )
    elsewhere.add_argument(
        "--tokens",
        type=_count,
        metavar="N",
        help="tokens per example, when the data is not on this machine; needs --rows",
    )
    elsewhere.add_argument(
        "--rows",
        type=_count,
        metavar="N",
        help="number of training examples, when the data is not on this machine; needs --tokens",
    )
    elsewhere.add_argument(
        "--shared",
        type=int,
        metavar="N",
        help="how many of the --tokens are a prefix that all examples have in common (default: 0)",
    )
    elsewhere.add_argument(
        "--json", type=Path, metavar="FILE", help="file to write plan, prediction and advice to"
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", required=True, type=Path, help="adapter/ of a run")
    parser.add_argument(
        "--input", required=True, type=Path, dest="source", metavar="FILE",
        help=".csv .tsv .fa .fasta .fna, also .gz; .parquet; with --genome .vcf .bed .narrowPeak "
        ".broadPeak, also .gz",
    )  # fmt: skip
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        dest="target",
        metavar="FILE",
        help=".csv .tsv, also .gz; .parquet",
    )
    parser.add_argument("--sequence-column", default="sequence", help="column of the DNA (default: sequence)")
    parser.add_argument("--id-column", help="column of the ids (default: id, else rows are numbered from 0)")
    parser.add_argument(
        "--genome", type=Path, metavar="FASTA", help="that the places in a .vcf or .bed are of"
    )
    parser.add_argument(
        "--window", type=int, metavar="BASES",
        help="around a variant (default: as long as the training sequences), or an interval's middle",
    )  # fmt: skip
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse rows that do not fit the genome instead of skipping them",
    )
    parser.add_argument("--backbone", help="folder or hub id of the backbone, where it has moved")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there already")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", required=True, type=Path, metavar="DIR", help="adapter/ of a run")
    parser.add_argument(
        "--to", required=True, choices=["adalora", "lora", "merged"],
        help="PEFT's AdaLoRA or LoRA folder, or a whole Hugging Face model",
    )  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--backbone", metavar="PATH", help="folder or hub id of the backbone, where it has moved"
    )
    parser.add_argument(
        "--dtype", choices=["fp32", "bf16", "fp16"], help="of merged weights; else the backbone's own"
    )
    parser.add_argument(
        "--shard-gb", type=float, default=4.0, metavar="GB", help="largest file of a merged model (4)"
    )
    parser.add_argument("--license", default="other", help="for the model card, as the hub names it (other)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export")


VERBS = {
    "train": ("train an adapter, select it on dev, report on test", _recipe_arguments, _by_recipe),
    "evaluate": ("evaluate a run's saved adapter on its test split", _recipe_arguments, _by_recipe),
    "predict": (
        "predict classes, labels or values of new sequences",
        _predict_arguments,
        _predict,
    ),
    "export": (
        "write a saved adapter for other software, or merge it into its backbone",
        _export_arguments,
        _export,
    ),
    "plan": (
        "print the arithmetic of a run: batch, steps, parameters, memory; with --gpu its speed elsewhere",
        _plan_arguments,
        _plan,
    ),
}
"""Per verb: what it does, its arguments, and the function that takes them and returns the exit status."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lingo-ds", description="Fine-tune frozen language models on genomes.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, (text, add_arguments, start) in VERBS.items():
        sub = verbs.add_parser(
            verb, help=text, description=text, epilog="Settings follow as section.field=value."
        )
        add_arguments(sub)
        sub.set_defaults(start=start)
    return parser


if __name__ == "__main__":
    sys.exit(main())
