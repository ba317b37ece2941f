"""The adapter folder: PEFT's AdaLoRA or LoRA format, so that stock PEFT loads it, and a card of its use."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lingo_ds.adapter_card import BackboneCard, Card, DataCard, SavedAdapter
from lingo_ds.adapters.layout import BankLayout, Site
from lingo_ds.backbone.spec import BackboneSpec
from lingo_ds.errors import Mistake, UserError
from lingo_ds.files import own_file, read_json, write_aside
from lingo_ds.model_card import README, Notes, model_card

__all__ = [
    "BackboneCard", "Card", "DataCard", "SavedAdapter", "as_lora", "as_svd", "load_adapter", "read_card",
    "read_settings", "save_adapter",
]  # fmt: skip

WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "task.json"
HEAD = "base_model.model.score.weight"
RANK_EPSILON = 1e-5
"""PEFT divides by rank + 1e-5; lora_E is multiplied by as much, so that its logits are ours."""

PARTS = {
    "ADALORA": {"q": "lora_A", "lam": "lora_E", "p": "lora_B"},
    "LORA": {"q": "lora_A.weight", "p": "lora_B.weight"},
}
"""PEFT's names of a site's tensors."""

RANK_FIELD = {"ADALORA": "init_r", "LORA": "r"}
SETTINGS = {
    "ADALORA": ("lora_dropout", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2",
                "orth_reg_weight", "total_step"),
    "LORA": ("lora_dropout",),
}  # fmt: skip
"""Numbers in PEFT's config that say how an adapter came about, and are kept when it is written anew."""

OTHER_MATHS = ("use_rslora", "use_dora", "use_qalora", "alora_invocation_tokens", "layer_replication")
"""PEFT settings under which the same tensors mean another function."""

HEADER_LIMIT = 100_000_000
"""Bytes of the largest header that safetensors reads."""

NO_TARGETS = "dummy-target-modules"
"""PEFT's word for an adapter without sites: the head alone."""


def save_adapter(
    folder: Path,
    adapter: SavedAdapter,
    *,
    spec: BackboneSpec,
    backbone_path: str,
    settings: dict[str, Any],
    notes: Notes = Notes(),  # noqa: B008
) -> None:
    """Writes the folder in one step, AdaLoRA where there is a lam, else LoRA.

    Args:
        folder: is replaced whole.
        adapter: goes in as it is; see `as_lora` and `as_svd`.
        spec: of the backbone.
        backbone_path: how PEFT finds the backbone.
        settings: further fields of PEFT's AdaLoraConfig or LoraConfig.
        notes: what the model card says beside what the adapter knows.
    """
    tensors, config = _peft_tensors(adapter, spec), _peft_config(adapter, spec, backbone_path) | settings
    text = model_card(
        adapter, spec, form=_peft_type(adapter).lower(), backbone_path=backbone_path, notes=notes
    )

    def write(aside: Path) -> None:
        aside.mkdir()
        save_file(tensors, aside / WEIGHTS, metadata={"format": "pt"})
        (aside / CONFIG).write_text(json.dumps(config, indent=2))
        (aside / CARD).write_text(adapter.card.model_dump_json(indent=2))
        (aside / README).write_text(text, encoding="utf-8")

    write_aside(folder, write)


def as_lora(adapter: SavedAdapter) -> SavedAdapter:
    """The same function without lam: its root goes into each factor, its sign into P.

    P and Q are near orthonormal, so the two factors come out equally large, and neither leaves a half
    precision's range before the other.
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
    for k in range(len(layout.sites)):
        old, new = adapter.layout.site(adapter.values, k), layout.site(values, k)
        root = torch.ones(len(old.q)) if has_lam else old.lam.abs().sqrt()
        sign = torch.ones(len(old.q)) if has_lam else old.lam.sign()
        new.p.copy_(old.p * (sign * root)[:, None])
        new.q.copy_(old.q * root[:, None])
    return replace(adapter, layout=layout, values=values)


def _prefix(spec: BackboneSpec) -> str:
    """Where PEFT's sequence classifier keeps the base model."""
    return f"base_model.model.{spec.skeleton.base_model_prefix}."


def _peft_type(adapter: SavedAdapter) -> str:
    return "ADALORA" if adapter.layout.has_lam else "LORA"


def _peft_tensors(adapter: SavedAdapter, spec: BackboneSpec) -> dict[str, Tensor]:
    tensors = {HEAD: adapter.layout.head(adapter.values)}
    names = PARTS[_peft_type(adapter)]
    for site, _, views in adapter.kept():
        lam = views.lam[:, None] * (1 + RANK_EPSILON / adapter.rank)
        values = {"q": views.q, "lam": lam, "p": views.p.T}
        tensors |= {f"{_prefix(spec)}{site.name}.{names[part]}": values[part] for part in names}
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
    if adapter.layout.has_lam:
        config["rank_pattern"] = {
            f"{inner}.{name}.lora_E": [slot < rank for slot in range(adapter.rank)]
            for name, rank in ranks.items()
        }
    elif others := {_pattern(spec, name): rank for name, rank in ranks.items() if rank != adapter.rank}:
        config["rank_pattern"] = others
        config["alpha_pattern"] = {key: adapter.scale * rank for key, rank in others.items()}
    return config


def _pattern(spec: BackboneSpec, name: str) -> str:
    r"""PEFT's key for one map alone: it puts `(.*\.)?` before a key and matches it as a regex."""
    return "^" + re.escape(f"{spec.skeleton.base_model_prefix}.{name}")


def read_card(folder: Path) -> Card:
    """The adapter folder's `task.json`.

    Raises:
        UserError: where it is missing or no such card.
    """
    try:
        return Card.model_validate(read_json(folder, CARD))
    except (OSError, ValueError) as error:
        raise _incomplete(folder, error) from None


def read_settings(folder: Path, adapter: SavedAdapter) -> dict[str, Any]:
    """How the adapter of a folder came about, for `save_adapter`: known numbers from its config, no more.

    Raises:
        UserError: where the folder holds no such config.
    """
    try:
        found = read_json(folder, CONFIG)
    except (OSError, ValueError) as error:
        raise _incomplete(folder, error) from None
    settings: dict[str, Any] = {"revision": adapter.card.backbone.revision}
    if adapter.layout.has_lam:  # PEFT demands a schedule, also of an adapter that never had one
        settings |= {
            "target_r": adapter.rank,
            "tinit": 0,
            "tfinal": 0,
            "total_step": max(1, adapter.card.step),
        }
    names = SETTINGS[_peft_type(adapter)]
    return settings | {name: found[name] for name in names if type(found.get(name)) in (int, float)}


class PeftConfig(NamedTuple):
    """What PEFT's config says about the function: kind, training rank and alpha, ranks of other sites."""

    kind: str
    rank: int
    alpha: float
    ranks: dict[str, int]

    def fits(self, name: str, rank: int) -> bool:
        """Whether a site may have this rank: LoRA says it, AdaLoRA prunes from the training rank."""
        return rank == self.ranks.get(name, self.rank) if self.kind == "LORA" else 0 < rank <= self.rank

    def largest_file(self, spec: BackboneSpec, *, classes: int) -> int:
        """Bytes that a weight file with every map adapted can have, in fp64, and room for its header."""
        maps = spec.linear_maps.items()
        entries = sum((d_out + d_in + 1) * self.ranks.get(name, self.rank) for name, (d_out, d_in) in maps)
        return 8 * (entries + classes * spec.output_size) + HEADER_LIMIT


def load_adapter(folder: Path, spec: BackboneSpec) -> SavedAdapter:
    """Reads an adapter folder back, strictly: every tensor must fit the backbone, before any is allocated.

    Raises:
        UserError: where files are missing, damaged, or made for another backbone.
    """
    card = read_card(folder)
    try:
        config = _read_config(read_json(folder, CONFIG), spec)
        path = own_file(folder, WEIGHTS)
        if path.stat().st_size > (limit := config.largest_file(spec, classes=card.task.classes)):
            raise ValueError(f"{WEIGHTS} is above {limit:,} bytes, the most that its rank and shape can be")
        with safe_open(path, "pt") as file:
            layout = _layout(file, config, spec, classes=card.task.classes)
            values = _values(file, layout, config, spec)
    except _Misfit as misfit:
        where = f"{folder}: {misfit.where}" if misfit.where else str(folder)
        fix = "set the backbone it was trained on"
        raise UserError(Mistake(where, misfit.value, misfit.rule, fix)) from None
    except (OSError, ValueError, ArithmeticError, SafetensorError) as error:
        raise _incomplete(folder, error) from None
    return SavedAdapter(layout, values, config.alpha, config.rank, card)


class _Misfit(Exception):
    """A tensor that the backbone's adapters do not have."""

    def __init__(self, where: str, value: object, rule: str):
        self.where, self.value, self.rule = where, value, rule


def _read_config(config: dict[str, Any], spec: BackboneSpec) -> PeftConfig:
    """Raises ValueError where the config says what these adapters cannot be."""
    kind = config.get("peft_type")
    if kind not in ("ADALORA", "LORA"):
        raise ValueError(f"peft_type {kind!r} is not ADALORA or LORA")
    for name in OTHER_MATHS:
        if config.get(name):
            raise ValueError(f"{name} is set, which these adapters do not know")
    field, largest = RANK_FIELD[kind], spec.ffn_size  # no map has more singular values
    rank, alpha = config.get(field), config.get("lora_alpha")
    if type(rank) is not int or not 0 < rank <= largest:
        raise ValueError(f"{field} {rank!r} is no whole number in 1 .. {largest}")
    if type(alpha) not in (int, float) or not alpha > 0:
        raise ValueError(f"lora_alpha {alpha!r} is no number above 0")
    return PeftConfig(
        kind, rank, float(alpha), _lora_ranks(config, rank, alpha, spec) if kind == "LORA" else {}
    )


def _lora_ranks(config: dict[str, Any], rank: int, alpha: float, spec: BackboneSpec) -> dict[str, int]:
    """LoRA's ranks by site where they differ; the patterns must leave one scale for all sites."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    names = {_pattern(spec, name): name for name in spec.linear_maps}
    if (
        not isinstance(ranks, dict)
        or not isinstance(alphas, dict)
        or not ranks.keys() | alphas <= names.keys()
    ):
        raise ValueError("rank_pattern or alpha_pattern names what is no map of the backbone")
    for key in ranks.keys() | alphas:
        r, a = ranks.get(key, rank), alphas.get(key, alpha)
        if type(r) is not int or not 0 < r <= spec.ffn_size:
            raise ValueError(f"rank_pattern: {r!r} is no whole number in 1 .. {spec.ffn_size}")
        if type(a) not in (int, float) or not math.isclose(a / r, alpha / rank, rel_tol=1e-6):
            raise ValueError(f"alpha_pattern: {a!r} / {r} is not lora_alpha / r, the scale of all sites")
    return {names[key]: r for key, r in ranks.items()}


def _layout(file: Any, config: PeftConfig, spec: BackboneSpec, *, classes: int) -> BankLayout:
    """The layout that the file's header describes; nothing else of the file is read."""
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
    for key, part in slices.items():
        if part.get_dtype() not in ("F32", "F16", "BF16", "F64"):
            raise ValueError(f"{key} is of {part.get_dtype()}, no numbers")
    if HEAD not in shapes:
        raise ValueError(f"{HEAD} is missing")
    head, wanted_head = shapes.pop(HEAD), (classes, spec.output_size)
    if head != wanted_head:
        raise _Misfit(
            "", f"head {head}", f"is not {wanted_head}, the card's classes by the backbone's output"
        )
    sites, ranks = [], []
    for name, (d_out, d_in) in spec.linear_maps.items():
        keys = {part: _prefix(spec) + f"{name}.{theirs}" for part, theirs in PARTS[config.kind].items()}
        if not any(key in shapes for key in keys.values()):
            continue
        rank = (shapes.get(keys["q"]) or (0,))[0]
        wanted = {"q": (rank, d_in), "lam": (rank, 1), "p": (d_out, rank)}
        for part, key in keys.items():
            if key not in shapes:
                raise ValueError(f"{key} is missing")
            if (shape := shapes.pop(key)) != wanted[part]:
                raise _Misfit(f"{name}: {part}", shape, f"is not {wanted[part]}, as its map and rank say")
        if not config.fits(name, rank):
            raise ValueError(f"{name} has rank {rank}, another than {CONFIG} says")
        sites.append(Site(name, d_out, d_in))
        ranks.append(rank)
    for key in shapes:
        raise _Misfit("", key.removeprefix(_prefix(spec)), "does not belong to this backbone's adapters")
    return BankLayout(tuple(sites), tuple(ranks), head, has_lam=config.kind == "ADALORA")


def _values(file: Any, layout: BankLayout, config: PeftConfig, spec: BackboneSpec) -> Tensor:
    """(layout.size,) fp32, copied out of the file tensor by tensor."""
    values = torch.zeros(layout.size)
    layout.head(values).copy_(file.get_tensor(HEAD))
    for k, site in enumerate(layout.sites):
        views, names = layout.site(values, k), PARTS[config.kind]
        part = {part: file.get_tensor(f"{_prefix(spec)}{site.name}.{name}") for part, name in names.items()}
        views.q.copy_(part["q"])
        views.p.copy_(part["p"].T)
        if layout.has_lam:
            views.lam.copy_(part["lam"].flatten() / (1 + RANK_EPSILON / config.rank))
    if not torch.isfinite(values).all():
        raise ValueError(f"{WEIGHTS} holds numbers that are not finite")
    return values


def _incomplete(folder: Path, error: Exception) -> UserError:
    rule = f"is no complete adapter folder ({' '.join(str(error).split())[:200]})"
    return UserError(Mistake(str(folder), type(error).__name__, rule, "give the adapter/ of a run"))
