"""The adapter folder: PEFT's AdaLoRA or LoRA format, so that stock PEFT loads it, and a card of its use."""

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

PARTS = {
    "ADALORA": {"q": "lora_A", "lam": "lora_E", "p": "lora_B"},
    "LORA": {"q": "lora_A.weight", "p": "lora_B.weight"},
}
"""PEFT's names of a site's tensors."""

RANK_FIELD = {"ADALORA": "init_r", "LORA": "r"}
NO_TARGETS = "dummy-target-modules"
"""PEFT's word for an adapter without sites: the head alone."""


class BackboneCard(BaseModel, extra="forbid", frozen=True):
    """Which backbone an adapter belongs to: a folder's whole path, a hub id, or what the package embeds."""

    path: str
    fingerprint: str
    revision: str | None = None


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
    """Writes the folder in one step; `settings` are further fields of PEFT's AdaLoraConfig or LoraConfig."""
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


def _peft_type(adapter: SavedAdapter) -> str:
    return "ADALORA" if adapter.layout.has_lam else "LORA"


def _peft_tensors(adapter: SavedAdapter, spec: BackboneSpec) -> dict[str, Tensor]:
    tensors = {"base_model.model.score.weight": adapter.layout.head(adapter.values)}
    names = PARTS[_peft_type(adapter)]
    for k, site in enumerate(adapter.layout.sites):
        if adapter.layout.ranks[k]:
            views = adapter.layout.site(adapter.values, k)
            lam = views.lam[:, None] * (1 + RANK_EPSILON / adapter.rank)
            values = {"q": views.q, "lam": lam, "p": views.p.T}
            tensors |= {f"{_prefix(spec)}{site.name}.{names[part]}": values[part] for part in names}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _peft_config(adapter: SavedAdapter, spec: BackboneSpec, backbone_path: str) -> dict[str, Any]:
    ranks = {
        site.name: rank for site, rank in zip(adapter.layout.sites, adapter.layout.ranks, strict=True) if rank
    }
    inner = spec.skeleton.base_model_prefix
    peft_type = _peft_type(adapter)
    config = {
        "peft_type": peft_type,
        RANK_FIELD[peft_type]: adapter.rank,
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": backbone_path,
        "inference_mode": True,
        "lora_alpha": adapter.alpha,
        "bias": "none",
        "fan_in_fan_out": spec.model_type == "gpt2",
        "target_modules": [f"{inner}.{name}" for name in ranks] or NO_TARGETS,
        "modules_to_save": ["score"],
    }
    if adapter.layout.has_lam:
        config["rank_pattern"] = {
            f"{inner}.{name}.lora_E": [slot < rank for slot in range(adapter.rank)]
            for name, rank in ranks.items()
        }
    return config


def read_card(folder: Path) -> Card:
    """The adapter folder's `task.json`.

    Raises:
        UserError: where it is missing or no such card.
    """
    try:
        return Card.model_validate_json((folder / CARD).read_text())
    except (OSError, ValueError) as error:
        raise _incomplete(folder, error) from None


def load_adapter(folder: Path, spec: BackboneSpec) -> SavedAdapter:
    """Reads an adapter folder back, strictly: every tensor must fit the backbone.

    Raises:
        UserError: where files are missing, damaged, or made for another backbone.
    """
    card = read_card(folder)
    try:
        config = json.loads((folder / CONFIG).read_text())
        tensors = load_file(folder / WEIGHTS)
        head = tensors.pop("base_model.model.score.weight")
        peft_type = config["peft_type"]
        wanted, rank_field = PARTS[peft_type], RANK_FIELD[peft_type]
        rank, alpha = int(config[rank_field]), float(config["lora_alpha"])
        assert rank > 0, f"{rank_field} {rank} is not above 0"
    except (OSError, ValueError, KeyError, TypeError, AssertionError, SafetensorError) as error:
        raise _incomplete(folder, error) from None
    site_of = {f"{_prefix(spec)}{name}.{part}": name for name in spec.linear_maps for part in wanted.values()}
    unknown = [key.removeprefix(_prefix(spec)) for key in tensors if key not in site_of]
    if unknown or head.ndim != 2 or head.shape[1] != spec.output_size:
        found = unknown[0] if unknown else f"head {tuple(head.shape)}"
        rule = "does not belong to this backbone's adapters"
        raise UserError(Mistake(str(folder), found, rule, "set the backbone it was trained on"))
    names = {site_of[key] for key in tensors}
    sites = tuple(Site(name, *spec.linear_maps[name]) for name in spec.linear_maps if name in names)
    parts = {site.name: _site_tensors(tensors, _prefix(spec) + site.name, wanted, folder) for site in sites}
    ranks = tuple(parts[site.name]["q"].shape[:1].numel() for site in sites)
    layout = BankLayout(sites, ranks, tuple(head.shape), has_lam="lam" in wanted)
    values = torch.zeros(layout.size)
    layout.head(values).copy_(head)
    for k, site in enumerate(sites):
        views, part = layout.site(values, k), parts[site.name]
        q, p_t, lam = part["q"], part["p"], part.get("lam", views.lam).flatten()
        if (q.shape, p_t.shape, lam.shape) != (views.q.shape, views.p.T.shape, views.lam.shape):
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


def _incomplete(folder: Path, error: Exception) -> UserError:
    rule = f"is no complete adapter folder ({str(error).splitlines()[0]})"
    return UserError(Mistake(str(folder), type(error).__name__, rule, "give the adapter/ of a run"))


def _site_tensors(
    tensors: dict[str, Tensor], name: str, parts: dict[str, str], folder: Path
) -> dict[str, Tensor]:
    try:
        return {part: tensors[f"{name}.{theirs}"] for part, theirs in parts.items()}
    except KeyError as missing:
        raise UserError(
            Mistake(str(folder), missing.args[0], "is missing from the adapter's weights", "export it again")
        ) from None
