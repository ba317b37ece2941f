"""`lingo-ds train|evaluate|export|plan`: one entry point for every launcher."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

VERBS = {
    "train": "train an adapter, select it on dev, report on test",
    "evaluate": "evaluate a run's saved adapter on its test split",
    "export": "write a saved adapter for other software, or merge it into its backbone",
    "plan": "print the arithmetic of a run: batch, steps, parameters, memory",
}

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "export": {
        "--adapter": {"type": Path, "required": True, "metavar": "DIR", "help": "adapter/ of a run"},
        "--to": {
            "choices": ["adalora", "lora", "merged"],
            "required": True,
            "help": "PEFT's AdaLoRA or LoRA folder, or a whole Hugging Face model",
        },
        "--output": {"type": Path, "required": True, "metavar": "DIR", "help": "folder to write"},
        "--backbone": {"metavar": "PATH", "help": "folder or hub id, where it is not the adapter's own path"},
        "--dtype": {
            "choices": ["fp32", "bf16", "fp16"],
            "help": "of merged weights; else the backbone's own",
        },
        "--shard-gb": {
            "type": float,
            "default": 4.0,
            "metavar": "GB",
            "help": "largest file of a merged model (4)",
        },
        "--license": {"default": "other", "help": "for the model card, as the hub names it (other)"},
        "--overwrite": {"action": "store_true", "help": "replace an earlier export"},
    }
}
"""Verbs that need no config, with their own options."""


def main(argv: list[str] | None = None) -> int:
    """Runs one verb. Returns 0 on success, 2 on the user's mistake; the program's faults raise (status 1)."""
    args, overrides = _parser().parse_known_args(argv)
    from lingo_ds.errors import UserError

    try:
        return _run(args, [override for override in overrides if not override.startswith("--local_rank")])
    except UserError as error:
        if not error.on_all or os.environ.get("RANK", "0") == "0":
            print(error, file=sys.stderr, flush=True)  # noqa: T201
        return 2


def leave(status: int) -> NoReturn:
    """Ends a process of a job without Python's own finalisation.

    While that runs, a gloo thread that lets go of the last collective can abort the process (seen in one of
    some ten ends on a busy machine), and a job that has done all its work would fail.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(args: argparse.Namespace, overrides: list[str]) -> int:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost process is told in our words
    from lingo_ds import logs
    from lingo_ds.distributed import detect
    from lingo_ds.errors import Mistake, UserError
    from lingo_ds.recipe import load_config
    from lingo_ds.resources import resource_path

    if args.verb in OPTIONS:
        if overrides:
            fix = f"see lingo-ds {args.verb} --help"
            raise UserError(
                [Mistake("command line", one, "is no option", fix) for one in overrides], on_all=True
            )
        env = detect()
        logs.set_up(env)
        from lingo_ds import run

        options = {name: value for name, value in vars(args).items() if name != "verb"}
        getattr(run, args.verb)(env, **options)
        return 0
    path = Path(args.config)
    if not path.suffix:
        path = resource_path("recipes", args.config)
    config, env = load_config(path, overrides), detect()
    logs.set_up(env)
    from lingo_ds import run

    getattr(run, args.verb)(config, env)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lingo-ds", description="Fine-tune frozen language models on genomes.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in VERBS.items():
        epilog = None if verb in OPTIONS else "Settings follow as section.field=value."
        sub = verbs.add_parser(verb, help=text, description=text, epilog=epilog)
        for option, details in OPTIONS.get(verb, {}).items():
            sub.add_argument(option, **details)
        if verb in OPTIONS:
            continue
        sub.add_argument("--config", required=True, help="YAML file, or the name of a shipped recipe")
    return parser


if __name__ == "__main__":
    sys.exit(main())
