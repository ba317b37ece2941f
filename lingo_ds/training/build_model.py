"""The model of a run: its backbone, loaded whole or as shards, with a new bank on it."""

from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from lingo_ds.distributed import process_group
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.adapters.bank import AdapterBank, Scalar
from lingo_ds.models.backbone.backbone import DTYPE_NAMES, Backbone, BackboneOptions, load_backbone
from lingo_ds.models.carrier import Carrier
from lingo_ds.planning.remedies import remedy_of_loading
from lingo_ds.training.setup import RunSetup
from lingo_ds.utils.out_of_memory import report_out_of_memory


def build_model(setup: RunSetup) -> AdaptedModel:
    """Loads the backbone and puts a new bank on it, the same on every process."""
    return adapt(setup, load(setup, backbone_options(setup)))


def load(setup: RunSetup, options: BackboneOptions) -> Backbone:
    """Loads a run's backbone.

    Raises:
        UserError: where its files do not fit the config, or memory runs out.
    """
    with _full_memory_in_words("loading the backbone", setup):
        return load_backbone(setup.spec, options, dtype=setup.dtype, env=setup.env)


def _full_memory_in_words(phase: str, setup: RunSetup) -> AbstractContextManager[None]:
    zero, stage = setup.config.zero, setup.plan.zero_stage
    remedy = partial(remedy_of_loading, zero, stage=stage, processes=setup.env.world_size)
    return report_out_of_memory(phase, remedy)


def backbone_options(setup: RunSetup) -> BackboneOptions:
    """The options with which a run loads its backbone."""
    return setup.plan.backbone_options(
        setup.config.backbone,
        setup.profile,
        dtype=DTYPE_NAMES[setup.dtype],
        embedding_rows=[row for ids in setup.letters for row in ids],
    )


def adapt(setup: RunSetup, backbone: Backbone | Carrier) -> AdaptedModel:
    """Puts a new bank on a loaded backbone, the same on every process; a carrier may have others, too.

    Raises:
        UserError: where memory runs out.
    """
    with _full_memory_in_words("making the adapters", setup):
        loaded = backbone.backbone if isinstance(backbone, Carrier) else backbone
        bank = _new_bank(setup, loaded.embedding_rows)
    return AdaptedModel(
        backbone,
        bank,
        pooling=setup.config.head.pooling,
        dropout=setup.config.adapter.dropout,
        shared_inputs=setup.spec.shared_inputs,
    )


def _new_bank(setup: RunSetup, letter_rows: Tensor) -> AdapterBank:
    config, env, plan, letters = setup.config, setup.env, setup.plan, setup.letters
    bank = AdapterBank(
        setup.layout,
        scale=config.adapter.numerator / config.adapter.rank,
        dtype=setup.dtype,
        device=env.device,
        scalars=len(Scalar),
        importance=plan.schedule is not None,
    )
    if env.is_main:
        rows = letter_rows.split([len(ids) for ids in letters])
        tokens = torch.stack([spelled.mean(0) for spelled in rows]) if letters else None
        bank.initialize(config.seed, init=config.adapter.init, tokens=tokens)
    process_group.broadcast_(bank.master)
    bank.refresh()
    return bank
