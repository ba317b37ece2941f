"""PEFT's names and config for an adapter, and reading them from a folder that may come from anyone."""

import math
import re
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from lingo_ds.data.tokenization import NUCLEOTIDES
from lingo_ds.models.adapters.layout import BankLayout, Site
from lingo_ds.models.backbone.byte_ranges import SAFETENSORS_DTYPES
from lingo_ds.models.backbone.spec import BackboneSpec

ADAPTER_WEIGHTS, CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "task.json"
HEAD_KEY = "base_model.model.score.weight"
RANK_EPSILON = 1e-5
"""PEFT divides by rank + 1e-5; lora_E is multiplied by as much, so that its logits are ours."""

PARTS = {
    "ADALORA": {"q": "lora_A", "lam": "lora_E", "p": "lora_B"},
    "LORA": {"q": "lora_A.weight", "p": "lora_B.weight"},
}
"""PEFT's names of a site's tensors."""

TOKENS = "token_adapter.trainable_tokens_delta"
"""PEFT's name of the rows that replace an embedding for some tokens: here new ones, at its end."""

RANK_FIELD = {"ADALORA": "init_r", "LORA": "r"}

OTHER_MATHS = ("use_rslora", "use_dora", "use_qalora", "alora_invocation_tokens", "layer_replication")
"""PEFT settings under which the same tensors mean another function."""

HEADER_LIMIT = 100_000_000
"""Bytes of the largest header that safetensors reads."""


def peft_prefix(spec: BackboneSpec) -> str:
    """Prefix of the base model's tensors in PEFT's sequence classifier."""
    return f"base_model.model.{spec.skeleton.base_model_prefix}."


def tokens_key(spec: BackboneSpec) -> str:
    """PEFT's name of the learned tokens' rows."""
    return f"{peft_prefix(spec)}{spec.embedding}.{TOKENS}"


def peft_pattern(spec: BackboneSpec, name: str) -> str:
    r"""PEFT's key for one map alone: it puts `(.*\.)?` before a key and matches it as a regex."""
    return "^" + re.escape(f"{spec.skeleton.base_model_prefix}.{name}")


def peft_token_indices(spec: BackboneSpec) -> dict[str, list[int]]:
    """PEFT's `trainable_token_indices` of learned nucleotides: the ids behind the backbone's vocabulary."""
    first = spec.embedding_shape[0]
    name = f"{spec.skeleton.base_model_prefix}.{spec.embedding}"
    return {name: list(range(first, first + len(NUCLEOTIDES)))}


class PeftConfig(NamedTuple):
    """The part of PEFT's config that decides the function: kind, training rank, alpha, and ranks by site."""

    kind: str
    rank: int
    alpha: float
    ranks: dict[str, int]

    def fits(self, name: str, rank: int) -> bool:
        """Whether a site may have this rank: LoRA names it, AdaLoRA prunes from the training rank."""
        return rank == self.ranks.get(name, self.rank) if self.kind == "LORA" else 0 < rank <= self.rank

    def largest_file(self, spec: BackboneSpec, *, classes: int) -> int:
        """Most bytes that a weight file can have: every map adapted, in fp64, and the largest header."""
        maps = spec.linear_maps.items()
        entries = sum((d_out + d_in + 1) * self.ranks.get(name, self.rank) for name, (d_out, d_in) in maps)
        beside = classes * spec.output_size + len(NUCLEOTIDES) * spec.embedding_shape[1]
        return 8 * (entries + beside) + HEADER_LIMIT


class Misfit(Exception):
    """A tensor that does not fit the backbone's adapters."""

    def __init__(self, where: str, value: object, rule: str):
        self.where, self.value, self.rule = where, value, rule


def read_config(config: dict[str, Any], spec: BackboneSpec, *, nucleotides: bool) -> PeftConfig:
    """The config checked; raises ValueError for anything that these adapters cannot be."""
    kind = config.get("peft_type")
    if kind not in ("ADALORA", "LORA"):
        raise ValueError(f"peft_type {kind!r} is not ADALORA or LORA")
    for name in OTHER_MATHS:
        if config.get(name):
            raise ValueError(f"{name} is set, which these adapters do not know")
    indices = config.get("trainable_token_indices")
    if indices != (wanted := peft_token_indices(spec) if nucleotides else None):
        raise ValueError(f"trainable_token_indices {indices!r} is not {wanted}, as the card says")
    field, largest = RANK_FIELD[kind], spec.ffn_size  # no map has more singular values
    rank, alpha = config.get(field), config.get("lora_alpha")
    if not _is_rank(rank, largest):
        raise ValueError(f"{field} {rank!r} is no whole number in 1 .. {largest}")
    if not _is_number(alpha) or not alpha > 0:
        raise ValueError(f"lora_alpha {alpha!r} is no number above 0")
    ranks = _lora_ranks(config, rank, alpha, spec) if kind == "LORA" else {}
    return PeftConfig(kind, rank, float(alpha), ranks)


def _is_rank(value: object, largest: int) -> TypeGuard[int]:
    """Whether a value from JSON is a rank; `True` is none."""
    return type(value) is int and 0 < value <= largest


def _is_number(value: object) -> TypeGuard[float]:
    """Whether a value from JSON is a number; `True` is none."""
    return type(value) in (int, float)


def _lora_ranks(config: dict[str, Any], rank: int, alpha: float, spec: BackboneSpec) -> dict[str, int]:
    """LoRA's ranks by site where they differ; the patterns must leave one scale for all sites."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    names = {peft_pattern(spec, name): name for name in spec.linear_maps}
    if (
        not isinstance(ranks, dict)
        or not isinstance(alphas, dict)
        or not ranks.keys() | alphas <= names.keys()
    ):
        raise ValueError("rank_pattern or alpha_pattern names what is no map of the backbone")
    for key in ranks.keys() | alphas:
        r, a = ranks.get(key, rank), alphas.get(key, alpha)
        if not _is_rank(r, spec.ffn_size):
            raise ValueError(f"rank_pattern: {r!r} is no whole number in 1 .. {spec.ffn_size}")
        if not _is_number(a) or not math.isclose(a / r, alpha / rank, rel_tol=1e-6):
            raise ValueError(f"alpha_pattern: {a!r} / {r} is not lora_alpha / r, the scale of all sites")
    return {names[key]: r for key, r in ranks.items()}


def read_layout(
    file: Any, config: PeftConfig, spec: BackboneSpec, *, classes: int, nucleotides: bool
) -> BankLayout:
    """The layout that the file's header describes; nothing else of the file is read.

    Raises:
        Misfit: where a tensor has another shape than the backbone and the card need, or does not belong here.
        ValueError: where a tensor is missing or holds no numbers.
    """
    shapes = _read_shapes(file)
    head = classes, spec.output_size
    _take(shapes, HEAD_KEY, head, what="head ", rule="the card's classes by the backbone's output")
    token_shape = (0, 0)
    if nucleotides:
        token_shape = (len(NUCLEOTIDES), spec.embedding_shape[1])
        rule = "A C G T N by the backbone's embedding"
        _take(shapes, tokens_key(spec), token_shape, what="tokens ", rule=rule)
    sites, ranks = [], []
    for name, (d_out, d_in) in spec.linear_maps.items():
        site = Site(name, d_out, d_in)
        if (rank := _take_site(shapes, site, config, peft_prefix(spec))) is not None:
            sites.append(site)
            ranks.append(rank)
    for key in shapes:
        raise Misfit("", key.removeprefix(peft_prefix(spec)), "does not belong to this backbone's adapters")
    return BankLayout(
        tuple(sites), tuple(ranks), head, has_lam=config.kind == "ADALORA", token_shape=token_shape
    )


def _read_shapes(file: Any) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape, of a file that holds numbers alone."""
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  # a file is no mapping
    for key, part in slices.items():
        if part.get_dtype() not in SAFETENSORS_DTYPES:
            raise ValueError(f"{key} is of {part.get_dtype()}, no numbers")
    return {key: tuple(part.get_shape()) for key, part in slices.items()}


def _take(
    shapes: dict[str, tuple[int, ...]],
    key: str,
    wanted: tuple[int, ...],
    *,
    where: str = "",
    what: str = "",
    rule: str,
) -> None:
    """Removes a tensor from `shapes`, where it must be and have the wanted shape."""
    if key not in shapes:
        raise ValueError(f"{key} is missing")
    if (found := shapes.pop(key)) != wanted:
        raise Misfit(where, f"{what}{found}", f"is not {wanted}, {rule}")


def _take_site(shapes: dict[str, tuple[int, ...]], site: Site, config: PeftConfig, prefix: str) -> int | None:
    """Removes a site's tensors from `shapes`. Returns its rank; None where it has none."""
    keys = {part: f"{prefix}{site.name}.{theirs}" for part, theirs in PARTS[config.kind].items()}
    if not any(key in shapes for key in keys.values()):
        return None
    rank = (shapes.get(keys["q"]) or (0,))[0]
    wanted = {"q": (rank, site.d_in), "lam": (rank, 1), "p": (site.d_out, rank)}
    for part, key in keys.items():
        _take(shapes, key, wanted[part], where=f"{site.name}: {part}", rule="as its map and rank say")
    if not config.fits(site.name, rank):
        raise ValueError(f"{site.name} has rank {rank}, another than {CONFIG} says")
    return rank


def read_values(file: Any, layout: BankLayout, config: PeftConfig, spec: BackboneSpec) -> Tensor:
    """(layout.size,) fp32, copied out of the file tensor by tensor."""
    values = torch.zeros(layout.size)
    layout.head(values).copy_(file.get_tensor(HEAD_KEY))
    if layout.token_size:
        layout.tokens(values).copy_(file.get_tensor(tokens_key(spec)))
    for k, site in enumerate(layout.sites):
        views, prefix = layout.site(values, k), peft_prefix(spec) + site.name
        part = {part: file.get_tensor(f"{prefix}.{name}") for part, name in PARTS[config.kind].items()}
        views.q.copy_(part["q"])
        views.p.copy_(part["p"].T)
        if layout.has_lam:
            views.lam.copy_(part["lam"].flatten() / (1 + RANK_EPSILON / config.rank))
    if not torch.isfinite(values).all():
        raise ValueError(f"{ADAPTER_WEIGHTS} holds numbers that are not finite")
    return values
