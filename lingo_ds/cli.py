"""`lingo-ds train|evaluate|plan`: one entry point for every launcher."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

VERBS = {
    "train": "train an adapter, select it on dev, report on test",
    "evaluate": "evaluate a run's saved adapter on its test split",
    "plan": "print the arithmetic of a run: batch, steps, parameters, memory",
}


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
    from lingo_ds import logs
    from lingo_ds.distributed import detect
    from lingo_ds.recipe import load_config
    from lingo_ds.resources import resource_path

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
        sub = verbs.add_parser(
            verb, help=text, description=text, epilog="Settings follow as section.field=value."
        )
        sub.add_argument("--config", required=True, help="YAML file, or the name of a shipped recipe")
    return parser


if __name__ == "__main__":
    sys.exit(main())
