"""The adapter folder: PEFT's AdaLoRA format, so that stock PEFT loads it, and a card of what it is for."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lingo_ds.adapters.layout import BankLayout, Site
from lingo_ds.backbone.spec import BackboneSpec
from lingo_ds.data.tasks import Task
from lingo_ds.errors import Mistake, UserError
from lingo_ds.files import write_aside

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "task.json"
RANK_EPSILON = 1e-5
"""PEFT divides by rank + 1e-5; lora_E is multiplied by as much, so that its logits are ours."""


PARTS = ("lora_A", "lora_E", "lora_B")


class BackboneCard(BaseModel, extra="forbid", frozen=True):
    """Which backbone an adapter belongs to."""

    path: str
    fingerprint: str


class Card(BaseModel, extra="forbid", frozen=True):
    """What an adapter was trained for, and how it reads its input: `task.json`."""

    format: Literal[1] = 1
    task: Task
    pooling: str
    backbone: BackboneCard
    step: int
    at_budget: bool
    dev: dict[str, float | None]


@dataclass(frozen=True)
class SavedAdapter:
    """What an adapter folder holds, the head included.

    Attributes:
        layout: sites with their own ranks.
        values: (layout.size,) fp32.
        alpha, rank: scale is alpha / rank.
        card: task, backbone, pooling, step and dev metrics.
    """

    layout: BankLayout
    values: Tensor
    alpha: float
    rank: int
    card: Card


def save_adapter(
    folder: Path, adapter: SavedAdapter, *, spec: BackboneSpec, backbone_path: str, settings: dict[str, Any]
) -> None:
    """Writes the folder in one step; `settings` are further fields of PEFT's AdaLoraConfig."""
    tensors, config = _peft_tensors(adapter, spec), _peft_config(adapter, spec, backbone_path) | settings

    def write(aside: Path) -> None:
        aside.mkdir()
        save_file(tensors, aside / WEIGHTS, metadata={"format": "pt"})
        (aside / CONFIG).write_text(json.dumps(config, indent=2))
        (aside / CARD).write_text(adapter.card.model_dump_json(indent=2))

    write_aside(folder, write)


def _prefix(spec: BackboneSpec) -> str:
    """Where PEFT's sequence classifier keeps the base model."""
    return f"base_model.model.{spec.skeleton.base_model_prefix}."


def _peft_tensors(adapter: SavedAdapter, spec: BackboneSpec) -> dict[str, Tensor]:
    tensors = {"base_model.model.score.weight": adapter.layout.head(adapter.values)}
    for k, site in enumerate(adapter.layout.sites):
        if adapter.layout.ranks[k]:
            views = adapter.layout.site(adapter.values, k)
            name = _prefix(spec) + site.name
            tensors[f"{name}.lora_A"] = views.q
            tensors[f"{name}.lora_B"] = views.p.T
            tensors[f"{name}.lora_E"] = views.lam[:, None] * (1 + RANK_EPSILON / adapter.rank)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _peft_config(adapter: SavedAdapter, spec: BackboneSpec, backbone_path: str) -> dict[str, Any]:
    ranks = {
        site.name: rank for site, rank in zip(adapter.layout.sites, adapter.layout.ranks, strict=True) if rank
    }
    inner = spec.skeleton.base_model_prefix
    return {
        "peft_type": "ADALORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": backbone_path,
        "inference_mode": True,
        "init_r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "bias": "none",
        "fan_in_fan_out": spec.model_type == "gpt2",
        "target_modules": [f"{inner}.{name}" for name in ranks],
        "modules_to_save": ["score"],
        "rank_pattern": {
            f"{inner}.{name}.lora_E": [slot < rank for slot in range(adapter.rank)]
            for name, rank in ranks.items()
        },
    }


def load_adapter(folder: Path, spec: BackboneSpec) -> SavedAdapter:
    """Reads an adapter folder back, strictly: every tensor must fit the backbone.

    Raises:
        UserError: where files are missing, damaged, or made for another backbone.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        card = Card.model_validate_json((folder / CARD).read_text())
        tensors = load_file(folder / WEIGHTS)
        head = tensors.pop("base_model.model.score.weight")
        rank, alpha = int(config["init_r"]), float(config["lora_alpha"])
        assert rank > 0, f"init_r {rank} is not above 0"
    except (OSError, ValueError, KeyError, TypeError, AssertionError, SafetensorError) as error:
        rule = f"is no complete adapter folder ({str(error).splitlines()[0]})"
        raise UserError(
            Mistake(str(folder), type(error).__name__, rule, "give the adapter/ of a run")
        ) from None
    split = [key.removeprefix(_prefix(spec)).rpartition(".") for key in tensors]
    names = {name for name, _, _ in split}
    unknown = [
        f"{name}.{part}" for name, _, part in split if name not in spec.linear_maps or part not in PARTS
    ]
    if unknown or head.ndim != 2 or head.shape[1] != spec.output_size:
        found = unknown[0] if unknown else f"head {tuple(head.shape)}"
        rule = "does not belong to this backbone's adapters"
        raise UserError(Mistake(str(folder), found, rule, "set the backbone it was trained on"))
    sites = tuple(Site(name, *spec.linear_maps[name]) for name in spec.linear_maps if name in names)
    parts = {site.name: _site_tensors(tensors, _prefix(spec) + site.name, folder) for site in sites}
    layout = BankLayout(sites, tuple(len(parts[site.name][1]) for site in sites), tuple(head.shape))
    values = torch.zeros(layout.size)
    layout.head(values).copy_(head)
    for k, site in enumerate(sites):
        views, (q, lam, p_t) = layout.site(values, k), parts[site.name]
        if (q.shape, p_t.shape) != (views.q.shape, views.p.T.shape):
            raise UserError(
                Mistake(
                    f"{folder}: {site.name}",
                    tuple(q.shape),
                    "has another shape than the backbone's map",
                    "set its backbone",
                )
            )
        views.q.copy_(q)
        views.p.copy_(p_t.T)
        views.lam.copy_(lam / (1 + RANK_EPSILON / rank))
    return SavedAdapter(layout, values, alpha, rank, card)


def _site_tensors(tensors: dict[str, Tensor], name: str, folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    try:
        return tensors[f"{name}.lora_A"], tensors[f"{name}.lora_E"].flatten(), tensors[f"{name}.lora_B"]
    except KeyError as missing:
        raise UserError(
            Mistake(str(folder), missing.args[0], "is missing from the adapter's weights", "export it again")
        ) from None
