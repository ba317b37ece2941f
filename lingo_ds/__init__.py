"""Distributed fine-tuning of frozen language models on genomes: adaptive rank sampling (arXiv 2402.08075).

Python code needs two names: `load(..)` makes a saved adapter ready to predict, and `UserError` is raised for
a mistake of the user. Importing them imports no library.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lingo_ds.utils.errors import UserError

if TYPE_CHECKING:
    from lingo_ds.evaluation.predictor import Predictor

__all__ = ["UserError", "load"]


def load(adapter: str | Path, *settings: str) -> "Predictor":
    """Loads an adapter folder to predict with it: `load("runs/x/adapter").predict(["ACGT", ..])`.

    Where a launcher started several processes, all of them call it, and share the work.

    Args:
        adapter: the folder of a run, or the `adapter/` in it; or the hub id of a published adapter,
            `OWNER/NAME` or `OWNER/NAME@REVISION`. A folder of that name comes first.
        *settings: settings as on the command line of `lingo-ds predict`, e.g. `"backbone.dtype=bf16"`.

    Raises:
        UserError: where the adapter is damaged, its backbone is missing or another one, or a setting is
            wrong.
    """
    from lingo_ds.config.recipe import load_settings
    from lingo_ds.config.run_config import PredictConfig
    from lingo_ds.distributed import process_group
    from lingo_ds.evaluation.load_predictor import make_predictor

    config, env = load_settings(PredictConfig, list(settings)), process_group.detect()
    if env.world_size > 1:
        process_group.start(env)
    return make_predictor(Path(adapter), config, env)
