"""A frozen map with its adapters, W x + scale P ((m lam) (Q x)) (arXiv 2303.10512, eq. 3), as one function.

Maps that read the same tensor, q, k, v say, are one function together. What autograd would do in some twenty
operations a map is written out: gradients of P and Q go straight into the bank, and what the maps send back
to their common input is summed in place. Where a pass holds rows of several runs, the frozen products are of
all rows at once, and each run's adapter acts on its own.

Products of low rank are torch's own: oneDNN's take two thirds of the time, but leave compiled code behind for
every shape, and after the final mask each site has a rank of its own, with every length of a pack.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from lingo_ds.models.adapters.compute_copy import Operands
from lingo_ds.models.adapters.tenants import PassRows, Tenant
from lingo_ds.models.ops.frozen_map import FrozenMap
from lingo_ds.models.ops.matmul import add_product_, product


class Adapters(NamedTuple):
    """One run's adapters of maps that read the same tensor.

    Attributes:
        tenant: the run.
        places: of the maps that it adapts, among all of them.
        operands: the adapters, in the order of `places`.
        number: tells what they drop from what other adapters of the run do.
    """

    tenant: Tenant
    places: tuple[int, ...]
    operands: Operands
    number: int


class AdaptedMaps:
    """Maps that read the same tensor, all computed when the first of them is called."""

    def __init__(
        self, maps: Sequence[FrozenMap], adapters: Sequence[Adapters], rows: PassRows, *, anchor: Tensor
    ):
        """Takes the maps.

        Args:
            maps: the frozen maps.
            adapters: of all runs; a run may have several.
            rows: which rows are whose.
            anchor: any tensor that requires a gradient, so that the outputs do; it gets none.
        """
        self.maps, self._rows, self._anchor = list(maps), rows, anchor
        self._adapters: dict[Tenant, list[Adapters]] = {}
        for one in adapters:
            self._adapters.setdefault(one.tenant, []).append(one)
        self._x: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def __call__(self, place: int, x: Tensor, *, training: bool) -> Tensor:
        """Output (.., d_out) of the map at `place`; kept only for the very tensor it was computed from."""
        if x is not self._x or place not in self._waiting:
            outputs = _AdaptedMaps.apply(x, self._anchor, self, training)
            self._x, self._waiting = x, dict(enumerate(outputs))
        output = self._waiting.pop(place)
        if not self._waiting:
            self._x = None
        return output

    def acting_on(self, rows: int) -> list[tuple[Adapters, slice | None]]:
        """The adapters that act in the present pass, and on which of so many rows; None: on all."""
        shares = self._rows.of(rows)
        return [(one, share.rows) for share in shares for one in self._adapters.get(share.tenant, ())]


class _AdaptedMaps(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, _anchor: Tensor, maps: AdaptedMaps, training: bool
    ) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        outs = [product(rows, frozen.weight(), frozen.bias()) for frozen in maps.maps]
        ctx.maps, ctx.shape, ctx.acting, kept = maps.maps, x.shape, maps.acting_on(len(rows)), []
        for adapters, span in ctx.acting:
            own, dropped = _of(rows, span), None
            if training and adapters.tenant.dropout:
                adapters.tenant.seed_dropout(adapters.number)
                own, dropped = torch.native_dropout(own, adapters.tenant.dropout, True)
            inner = F.linear(own, adapters.operands.q)
            parts = _parts(inner, adapters.operands)
            for place, p, part in zip(adapters.places, adapters.operands.p, parts, strict=True):
                _of(outs[place], span).addmm_(part, p)
            kept += [own, inner, dropped]
        ctx.save_for_backward(*kept)
        ctx.set_materialize_grads(False)
        return tuple(torch.ops.aten._unsafe_view(out, [*x.shape[:-1], out.shape[1]]) for out in outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        flat = [None if grad is None else grad.reshape(-1, grad.shape[-1]) for grad in grads]
        of_x: Tensor | None = None
        for grad, frozen in zip(flat, ctx.maps, strict=True):
            if grad is not None and ctx.needs_input_grad[0]:  # None: of a map whose output nobody used
                weight = frozen.weight().t()
                of_x = product(grad, weight) if of_x is None else add_product_(of_x, grad, weight)
        kept = iter(ctx.saved_tensors)
        for adapters, span in ctx.acting:
            own, inner, dropped = next(kept), next(kept), next(kept)
            of_inner = _collect(adapters, [_of(flat[place], span) for place in adapters.places], own, inner)
            if of_x is None:
                continue
            if dropped is None:
                _of(of_x, span).addmm_(of_inner, adapters.operands.q)
            else:
                scale = 1 / (1 - adapters.tenant.dropout)
                of_own = torch.ops.aten.native_dropout_backward(
                    of_inner @ adapters.operands.q, dropped, scale
                )
                _of(of_x, span).add_(of_own)
        return None if of_x is None else of_x.view(ctx.shape), None, None, None


def _collect(adapters: Adapters, grads: Sequence[Tensor | None], own: Tensor, inner: Tensor) -> Tensor:
    """Adds the gradients of P and Q to the bank's; returns that of `inner`, (rows, sum of ranks).

    Args:
        adapters: the adapters.
        grads: of each of their maps' outputs, (rows, d_out).
        own: what they read, (rows, d_in).
        inner: Q times that.
    """
    operands, of_parts = adapters.operands, []
    each = zip(grads, operands.p, operands.p_grads, _parts(inner, operands), strict=True)
    for grad, p, p_grad, part in each:
        if grad is None:
            of_parts.append(torch.zeros_like(part))
            continue
        of_parts.append(F.linear(grad, p))
        p_grad.addmm_(part.t(), grad)
    of_inner = torch.cat(of_parts, dim=1) if len(of_parts) > 1 else of_parts[0]
    operands.q_grad.addmm_(of_inner.t(), own)
    return of_inner


def _of(rows: Tensor, span: slice | None) -> Tensor:
    """A run's rows among all of them, as a view."""
    return rows if span is None or rows is None else rows[span]


def _parts(inner: Tensor, operands: Operands) -> tuple[Tensor, ...]:
    """The columns of each map's adapter among all of their (rows, sum of ranks)."""
    return inner.split([len(p) for p in operands.p], dim=1)
