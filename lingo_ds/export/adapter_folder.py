"""The adapter folder: PEFT's AdaLoRA or LoRA format, which stock PEFT loads, and a card of how to use it."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lingo_ds.export.adapter_card import Card, SavedAdapter
from lingo_ds.export.hub import fetch_adapter, is_hub_id
from lingo_ds.export.model_card import README, CardNotes, model_card
from lingo_ds.export.peft_format import (
    ADAPTER_WEIGHTS,
    CARD,
    CONFIG,
    HEAD_KEY,
    PARTS,
    RANK_EPSILON,
    RANK_FIELD,
    Misfit,
    peft_pattern,
    peft_prefix,
    peft_token_indices,
    read_config,
    read_layout,
    read_values,
    tokens_key,
)
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.backbone.supported import lfs_mistake
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write
from lingo_ds.utils.safe_read import git_lfs_pointers, own_file, read_own_json

SETTINGS = {
    "ADALORA": ("lora_dropout", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2",
                "orth_reg_weight", "total_step"),
    "LORA": ("lora_dropout",),
}  # fmt: skip
"""Numbers in PEFT's config that record how an adapter was trained, and are kept when it is exported."""

NO_TARGETS = "dummy-target-modules"
"""The target modules in PEFT's config of an adapter without sites, which is the head alone."""


def save_adapter(
    folder: Path,
    adapter: SavedAdapter,
    *,
    spec: BackboneSpec,
    backbone_path: str,
    settings: dict[str, Any],
    notes: CardNotes = CardNotes(),  # noqa: B008
) -> None:
    """Writes the folder in one step, AdaLoRA where there is a lam, else LoRA.

    Args:
        folder: the folder to write; an earlier one is replaced as a whole.
        adapter: written as it is; see `as_lora` and `as_svd`.
        spec: shapes of the backbone.
        backbone_path: how PEFT finds the backbone.
        settings: further fields of PEFT's AdaLoraConfig or LoraConfig.
        notes: what the model card says beside what the adapter knows.
    """
    tensors, config = _peft_tensors(adapter, spec), _peft_config(adapter, spec, backbone_path) | settings
    text = model_card(
        adapter,
        spec,
        form="adalora" if adapter.layout.has_lam else "lora",
        backbone_path=backbone_path,
        notes=notes,
    )

    def write(aside: Path) -> None:
        aside.mkdir()
        save_file(tensors, aside / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        (aside / CONFIG).write_text(json.dumps(config, indent=2))
        (aside / CARD).write_text(adapter.card.model_dump_json(indent=2))
        (aside / README).write_text(text, encoding="utf-8")

    atomic_write(folder, write)


def as_lora(adapter: SavedAdapter) -> SavedAdapter:
    """The same function without lam: its square root goes into each factor, its sign into P.

    P and Q are near orthonormal, so the two factors are equally large, and neither leaves the range of half
    precision before the other.
    """
    return _with_lam(adapter, has_lam=False)


def as_svd(adapter: SavedAdapter) -> SavedAdapter:
    """The same function with a lam, of ones where there was none."""
    return _with_lam(adapter, has_lam=True)


def _with_lam(adapter: SavedAdapter, *, has_lam: bool) -> SavedAdapter:
    if adapter.layout.has_lam == has_lam:
        return adapter
    layout = replace(adapter.layout, has_lam=has_lam)
    values = torch.ones(layout.size)
    layout.head(values).copy_(adapter.layout.head(adapter.values))
    layout.tokens(values).copy_(adapter.layout.tokens(adapter.values))
    for k in range(len(layout.sites)):
        old, new = adapter.layout.site(adapter.values, k), layout.site(values, k)
        root = torch.ones(len(old.q)) if has_lam else old.lam.abs().sqrt()
        sign = torch.ones(len(old.q)) if has_lam else old.lam.sign()
        new.p.copy_(old.p * (sign * root)[:, None])
        new.q.copy_(old.q * root[:, None])
    return replace(adapter, layout=layout, values=values)


def _peft_type(adapter: SavedAdapter) -> str:
    return "ADALORA" if adapter.layout.has_lam else "LORA"


def _peft_tensors(adapter: SavedAdapter, spec: BackboneSpec) -> dict[str, Tensor]:
    tensors = {HEAD_KEY: adapter.layout.head(adapter.values)}
    if adapter.layout.token_size:
        tensors[tokens_key(spec)] = adapter.layout.tokens(adapter.values)
    names = PARTS[_peft_type(adapter)]
    for site, _, views in adapter.kept():
        lam = views.lam[:, None] * (1 + RANK_EPSILON / adapter.rank)
        values = {"q": views.q, "lam": lam, "p": views.p.T}
        tensors |= {f"{peft_prefix(spec)}{site.name}.{names[part]}": values[part] for part in names}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _peft_config(adapter: SavedAdapter, spec: BackboneSpec, backbone_path: str) -> dict[str, Any]:
    ranks = {site.name: rank for site, rank, _ in adapter.kept()}
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
    if adapter.layout.token_size:
        config["trainable_token_indices"] = peft_token_indices(spec)
    if adapter.layout.has_lam:
        config["rank_pattern"] = {
            f"{inner}.{name}.lora_E": [slot < rank for slot in range(adapter.rank)]
            for name, rank in ranks.items()
        }
    elif others := {peft_pattern(spec, name): rank for name, rank in ranks.items() if rank != adapter.rank}:
        config["rank_pattern"] = others
        config["alpha_pattern"] = {key: adapter.scale * rank for key, rank in others.items()}
    return config


def find_adapter(path: Path) -> Path:
    """The adapter folder at `path`, the one inside of the folder of a run, or that of a published adapter.

    A folder on this machine comes before a hub id, `OWNER/NAME` or `OWNER/NAME@REVISION`, of that name.

    Raises:
        UserError: where none of them is there, or git-lfs has not fetched its files.
    """
    path = Path(os.path.expanduser(path))
    for folder in (path, path / "adapter"):
        if any(os.path.exists(folder / name) for name in (CARD, CONFIG)):
            own = (CARD, CONFIG, ADAPTER_WEIGHTS)
            if pointers := [name for name in git_lfs_pointers(folder) if name in own]:
                raise UserError(lfs_mistake("--adapter", folder, pointers))
            return folder
    if not os.path.lexists(path) and is_hub_id(str(path).partition("@")[0]):
        return fetch_adapter(str(path))
    rule = f"is no folder of an adapter or a run: {CARD} is missing, and adapter/{CARD} too"
    raise UserError(Mistake("--adapter", path, rule, "give the folder of a run, or the adapter/ in it"))


def read_card(folder: Path) -> Card:
    """The adapter folder's `task.json`.

    Raises:
        UserError: where it is missing or not a valid card.
    """
    try:
        return Card.model_validate(read_own_json(folder, CARD))
    except (OSError, ValueError) as error:
        raise _incomplete(folder, error) from None


def read_settings(folder: Path, adapter: SavedAdapter) -> dict[str, Any]:
    """How the adapter of a folder was trained, for `save_adapter`: known numbers from its config, no others.

    Raises:
        UserError: where the folder holds no valid config.
    """
    try:
        found = read_own_json(folder, CONFIG)
    except (OSError, ValueError) as error:
        raise _incomplete(folder, error) from None
    settings: dict[str, Any] = {"revision": adapter.card.backbone.revision}
    if adapter.layout.has_lam:  # PEFT requires a schedule, even for an adapter that never had one
        settings |= {
            "target_r": adapter.rank,
            "tinit": 0,
            "tfinal": 0,
            "total_step": max(1, adapter.card.step),
        }
    names = SETTINGS[_peft_type(adapter)]
    return settings | {name: found[name] for name in names if type(found.get(name)) in (int, float)}


def adapter_fingerprint(folder: Path) -> str:
    """64 hex digits that change with what an adapter computes."""
    digest = hashlib.sha256()
    for name in (ADAPTER_WEIGHTS, CONFIG, CARD):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


def load_adapter(folder: Path, spec: BackboneSpec) -> SavedAdapter:
    """Reads an adapter folder back, strictly: every tensor must fit the backbone, before any is allocated.

    Raises:
        UserError: where files are missing, damaged, or made for another backbone.
    """
    card = read_card(folder)
    try:
        nucleotides = card.task.tokens == "nucleotides"
        config = read_config(read_own_json(folder, CONFIG), spec, nucleotides=nucleotides)
        path = own_file(folder, ADAPTER_WEIGHTS)
        if path.stat().st_size > (limit := config.largest_file(spec, classes=card.task.classes)):
            raise ValueError(
                f"{ADAPTER_WEIGHTS} is above {limit:,} bytes, the most that its rank and shape can be"
            )
        with safe_open(path, "pt") as file:
            layout = read_layout(file, config, spec, classes=card.task.classes, nucleotides=nucleotides)
            values = read_values(file, layout, config, spec)
    except Misfit as misfit:
        where = f"{folder}: {misfit.where}" if misfit.where else str(folder)
        fix = "set the backbone it was trained on"
        raise UserError(Mistake(where, misfit.value, misfit.rule, fix)) from None
    except (OSError, ValueError, ArithmeticError, SafetensorError) as error:
        raise _incomplete(folder, error) from None
    return SavedAdapter(layout, values, config.alpha, config.rank, card)


def _incomplete(folder: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or str(error)
    rule = f"is no complete adapter folder ({' '.join(reason.split())[:200]})"
    return UserError(Mistake(str(folder), type(error).__name__, rule, "give the adapter/ of a run"))
