"""Adapters with random values, not small, on the built-in backbone: as text or as nucleotides."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lingo_ds.data.task import make_task
from lingo_ds.export.adapter_card import BackboneCard, Card, SavedAdapter
from lingo_ds.export.adapter_folder import save_adapter
from lingo_ds.export.model_card import task_notes
from lingo_ds.models.adapters.layout import uniform_layout
from lingo_ds.models.adapters.sites import choose_sites
from lingo_ds.models.backbone import builtin
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.models.backbone.weight_files import weights_fingerprint

TEMPLATE = "Domain: promoters\nSequence: {sequence}\nAnnotation:"


def random_adapter(folder: Path, *, average_strands: bool = False, **task: Any) -> Path:
    """An adapter folder with its backbone beside it; `task` replaces fields of its task."""
    builtin.write_backbone(folder / "backbone")
    spec = read_spec(folder / "backbone")
    made = make_task("random", classes=task.get("classes", 2), template=TEMPLATE, domain=None, max_length=150)
    made = replace(made, **task)
    sites = choose_sites(spec.linear_maps, targets="all-linear", family_default=spec.target_names)
    layout = uniform_layout(sites, rank=2, head_shape=(made.classes, spec.output_size))
    if made.tokens == "nucleotides":
        layout = replace(layout, token_shape=(5, spec.embedding_shape[1]))
    values = torch.randn(layout.size, generator=torch.Generator().manual_seed(0)) * 0.2
    card = Card(
        task=made,
        pooling="mean",
        backbone=BackboneCard(path=str(spec.folder), fingerprint=weights_fingerprint(spec.folder)),
        step=1,
        at_budget=True,
        dev={},
        average_strands=average_strands,
    )
    saved = SavedAdapter(layout, values, 4.0, 2, card)
    settings = {"target_r": 2, "tinit": 0, "tfinal": 0, "deltaT": 1, "total_step": 2}
    notes = task_notes(made, spec, read_tokenizer(spec.folder))
    path = str(spec.folder)
    save_adapter(folder / "adapter", saved, spec=spec, backbone_path=path, settings=settings, notes=notes)
    return folder / "adapter"
