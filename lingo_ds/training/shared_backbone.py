"""One loaded backbone for many runs."""

import logging
from dataclasses import replace
from typing import Any

from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone.backbone import BackboneOptions
from lingo_ds.models.carrier import Carrier
from lingo_ds.training.build_model import adapt, backbone_options, load
from lingo_ds.training.setup import RunSetup

logger = logging.getLogger(__name__)


def backbone_key(setup: RunSetup) -> Any:
    """What two runs must share to use the same loaded backbone."""
    return setup.backbone_fingerprint, setup.dtype, _without_batch(backbone_options(setup))


def _without_batch(options: BackboneOptions) -> BackboneOptions:
    """The options that the shards depend on: DeepSpeed requires a micro-batch, but does not use it here."""
    if options.ds_config is None:
        return options
    kept = {key: value for key, value in options.ds_config.items() if key != "train_micro_batch_size_per_gpu"}
    return replace(options, ds_config=kept)


class SharedBackbone:
    """The backbone of all runs: loaded for the first, and again only where a run needs it in another form."""

    def __init__(self) -> None:
        """Loads nothing yet."""
        self._key: Any = None
        self._carrier: Carrier | None = None

    def build(self, setup: RunSetup) -> AdaptedModel:
        """Makes a run's model: a new bank on the backbone, beside those of runs that have not ended.

        Where the backbone must be loaded in another form, no other run may be on it.
        """
        key = backbone_key(setup)
        if self._carrier is None or key != self._key:
            assert self._carrier is None or not self._carrier.tenants, "other runs use this form"
            self._carrier = None  # frees its memory for the next one
            backbone = load(setup, backbone_options(setup))
            self._carrier, self._key = Carrier(backbone, shared_inputs=setup.spec.shared_inputs), key
            logger.info("backbone loaded; all runs that need it in this form share it")
        return adapt(setup, self._carrier)
