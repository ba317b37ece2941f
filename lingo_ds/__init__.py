"""Distributed fine-tuning of frozen language models on genomes: adaptive rank sampling (arXiv 2402.08075)."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lingo_ds.evaluation.predictor import Predictor


def load(adapter: str | Path, *settings: str) -> "Predictor":
    """An adapter folder, ready to predict: `load("runs/x/adapter").predict(["ACGT", ..])`.

    Where a launcher started several processes, all of them call it, and share the work.

    Args:
        adapter: `adapter/` of a run.
        *settings: as on the command line of `lingo-ds predict`, e.g. `"backbone.dtype=bf16"`.

    Raises:
        lingo_ds.utils.errors.UserError: where the adapter is damaged, its backbone is missing or another one,
            or a setting is wrong.
    """
    from lingo_ds.config.recipe import load_settings
    from lingo_ds.config.run_config import PredictConfig
    from lingo_ds.distributed import process_group
    from lingo_ds.evaluation.load_predictor import make_predictor

    config, env = load_settings(PredictConfig, list(settings)), process_group.detect()
    if env.world_size > 1:
        process_group.start(env)
    return make_predictor(Path(adapter), config, env)
