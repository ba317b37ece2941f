"""One decoder layer in numbers: what a token costs in it, and what it keeps there for the backward pass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lingo_ds.models.adapters.layout import Site
from lingo_ds.models.backbone.spec import BackboneSpec

HOLES = {"cpu": 1.0, "cuda": 1.1}
"""Bytes that an allocator takes for each byte of activations, since freed blocks lie between kept ones.
cpu: the package's own pool, which leaves none (`lingo_ds.models.ops.host_memory`); cuda: torch's caching
allocator, assumed and not measured."""

RUNTIME_BYTES = {"cpu": 590 * 1024**2, "cuda": 0}
"""What a process takes without a model. cpu: the peak of a job of 157,000 parameters, 572 to 594 MiB
(docs/scaling.md); cuda: not counted, since the memory of a plan is what is free beside it."""

PRODUCT_CODE_BYTES = 400_000
"""What oneDNN keeps, on the CPU, for each shape of a product that it has met: the number of tokens is part of
the shape, so that its compiled code grows with every new length of a pack (docs/log.md, 2026-11-30)."""

BACKWARD = 2
"""Element-by-element work of a backward pass over that of its forward pass."""

GATES = ("gate_proj", "gate_up_proj", "Wi")
"""Ends of the names of maps whose output is multiplied with another one, in some families of their own."""

OPERATIONS, OPERATIONS_OF_A_SITE = 60, 3
"""Operations that Python starts in a layer's forward pass: its own, and for each adapted map."""


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """Widths inside a decoder layer.

    Attributes:
        hidden: width of the residual stream.
        queries, keys: widths of queries and keys, of all heads together.
        inner: width between the maps of the feed-forward part.
        gated: whether the outputs of two maps are multiplied there.
        upcast: whether norms compute in fp32 and keep their input in it (transformers' RMS norms).
        maps: entries of all linear maps.
        fused: whether norms and gate are one kernel each, with nothing kept in between.
        sites: number of adapted maps.
        rank: rank of their adapters.
        adapted: sum of (d_in + d_out) over the adapted maps.
        adapted_out: sum of d_out over the adapted maps.
        inputs: sum of d_in over adapted maps, those that read the same tensor counted once.
        out_is_input: whether the attention's output is among these inputs.
        mask: bytes that dropout keeps for an entry of them beside the entry itself; 0: nothing is dropped.
    """

    hidden: int
    queries: int
    keys: int
    inner: int
    gated: bool
    upcast: bool
    fused: bool
    maps: int
    sites: int
    rank: int
    adapted: int
    adapted_out: int
    inputs: int
    out_is_input: bool
    mask: int = 0

    def kept(self, compute_bytes: int) -> int:
        """Entries, in the compute dtype, that a token keeps in the layer for the backward pass.

        Both norms' inputs, queries, keys, values and output of the attention, both sides of the
        nonlinearity, and the input of every adapted map. Frozen maps keep nothing. With dropout an adapter
        keeps what is left of its input, and which entries those are; attention keeps its output as it was.
        """
        norms = 2 * self.hidden * (4 // compute_bytes if self.upcast else 1)
        shares_output = self.out_is_input and not self.mask
        attention = self.queries + 2 * self.keys + (0 if shares_output else self.queries)
        inner = ((2 if self.fused else 3) if self.gated else 1) * self.inner
        masks = math.ceil(self.inputs * self.mask / compute_bytes)
        return norms + attention + inner + self.inputs + masks + self.rank * self.sites

    @property
    def working(self) -> int:
        """Entries per token of the gradients that exist at the same time in the backward pass of a layer."""
        return 3 * self.inner + 4 * self.hidden

    @property
    def moved(self) -> int:
        """Entries per token that element-by-element kernels of a forward pass read and write."""
        norms = 2 * (2 if self.fused else 10 if self.upcast else 4) * self.hidden
        rotary = 9 * (self.queries + self.keys)
        adapters = self.inputs + 2 * self.adapted_out
        inner = ((3 if self.fused else 5) if self.gated else 2) * self.inner
        return norms + rotary + adapters + inner + 6 * self.hidden

    @property
    def before_attention(self) -> int:
        """Entries of the maps that the last layer computes for all tokens: queries, keys, values."""
        return self.hidden * (self.queries + 2 * self.keys)

    @property
    def operations(self) -> int:
        """Operations that Python starts in the forward pass of a layer."""
        return OPERATIONS + OPERATIONS_OF_A_SITE * self.sites


def mask_bytes(dropout: float) -> int:
    """Bytes that say of an adapter's input which entries dropout has left, for each: a bool."""
    return torch.bool.itemsize if dropout else 0


def layer_shape(
    spec: BackboneSpec, sites: Sequence[Site], rank: int, *, fused: bool = False, mask: int = 0
) -> LayerShape:
    """The shape of a backbone's first decoder layer, with the adapters that lie in it."""
    first = next(iter(spec.linear_maps))
    layer = spec.last_layer.removesuffix(str(spec.layers - 1)) + "0."
    assert first.startswith(layer), f"{first} is not in {layer}"
    maps = {name: shape for name, shape in spec.linear_maps.items() if name.startswith(layer)}
    adapted = [site for site in sites if site.name in maps]
    last_in = {name: d_in for name, (_, d_in) in maps.items()}
    return LayerShape(
        hidden=spec.hidden_size,
        queries=spec.query_size,
        keys=spec.key_size,
        inner=max(*last_in.values(), spec.expert_width),
        gated=spec.expert_width > 0 or any(name.endswith(GATES) for name in maps),
        upcast=spec.upcast_norms,
        fused=fused,
        maps=sum(d_out * d_in for d_out, d_in in maps.values()) + 3 * spec.expert_width * spec.hidden_size,
        sites=len(adapted),
        rank=rank if adapted else 0,
        adapted=sum(site.d_in + site.d_out for site in adapted),
        adapted_out=sum(site.d_out for site in adapted),
        inputs=_distinct_inputs(last_in, [site.name for site in adapted], spec.shared_inputs),
        mask=mask,
        out_is_input=any(site.name.rsplit(".", 1)[-1] in ("o_proj", "out_proj", "dense") for site in adapted),
    )


def _distinct_inputs(d_in: Mapping[str, int], names: Sequence[str], shared: Sequence[Sequence[str]]) -> int:
    """Sum of d_in, maps that read the same tensor counted once."""
    left, total = set(names), 0
    for group in shared:
        together = left.intersection(group)
        if together:
            total += d_in[next(iter(together))]
            left -= together
    return total + sum(d_in[name] for name in left)
