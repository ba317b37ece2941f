"""A frozen map with its adapter, W x + scale P ((m lam) (Q x)) (arXiv 2303.10512, eq. 3), as one function.

Maps that read the same tensor, q, k, v say, are one function together. What autograd would do in some twenty
operations a map is written out: gradients of P and Q go straight into the bank, and what the maps send back
to their common input is summed in place.

Products of low rank are torch's own: oneDNN's take two thirds of the time, but leave compiled code behind for
every shape, and after the final mask each site has a rank of its own, with every length of a pack.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from lingo_ds.models.adapters.compute_copy import Operands
from lingo_ds.models.ops.frozen_map import FrozenMap
from lingo_ds.models.ops.matmul import add_product_, product


class AdaptedMaps:
    """Maps that read the same tensor, all computed when the first of them is called."""

    def __init__(self, maps: Sequence[FrozenMap], operands: Operands, *, dropout: float, anchor: Tensor):
        """Takes the maps in the order of their rows in `operands.q`.

        Args:
            maps: the frozen maps.
            operands: their adapters.
            dropout: probability of dropping an entry of the adapters' input in training.
            anchor: any tensor that requires a gradient, so that the outputs do; it gets none.
        """
        self.maps, self.operands = list(maps), operands
        self._dropout, self._anchor = dropout, anchor
        self._x: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def __call__(self, place: int, x: Tensor, *, training: bool) -> Tensor:
        """Output (.., d_out) of the map at `place`; kept only for the very tensor it was computed from."""
        if x is not self._x or place not in self._waiting:
            outputs = _AdaptedMaps.apply(x, self._anchor, self, self._dropout if training else 0.0)
            self._x, self._waiting = x, dict(enumerate(outputs))
        output = self._waiting.pop(place)
        if not self._waiting:
            self._x = None
        return output


class _AdaptedMaps(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, _anchor: Tensor, maps: AdaptedMaps, dropout: float
    ) -> tuple[Tensor, ...]:
        rows, operands = x.reshape(-1, x.shape[-1]), maps.operands
        dropped, kept = torch.native_dropout(rows, dropout, True) if dropout else (rows, None)
        inner = F.linear(dropped, operands.q)
        ctx.maps, ctx.dropout, ctx.shape = maps, dropout, x.shape
        ctx.save_for_backward(dropped, inner, kept)
        ctx.set_materialize_grads(False)
        outputs = []
        for frozen, p, part in zip(maps.maps, operands.p, _parts(inner, operands), strict=True):
            out = product(rows, frozen.weight(), frozen.bias()).addmm_(part, p)
            outputs.append(torch.ops.aten._unsafe_view(out, [*x.shape[:-1], len(p[0])]))
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        dropped, inner, kept = ctx.saved_tensors
        maps, operands = ctx.maps.maps, ctx.maps.operands
        of_parts: list[Tensor] = []
        of_x: Tensor | None = None
        each = zip(grads, maps, operands.p, operands.p_grads, _parts(inner, operands), strict=True)
        for grad, frozen, p, p_grad, part in each:
            if grad is None:  # of a map whose output nobody used
                of_parts.append(torch.zeros_like(part))
                continue
            grad = grad.reshape(-1, grad.shape[-1])
            of_parts.append(F.linear(grad, p))
            p_grad.addmm_(part.t(), grad)
            if ctx.needs_input_grad[0]:
                weight = frozen.weight().t()
                of_x = product(grad, weight) if of_x is None else add_product_(of_x, grad, weight)
        of_inner = torch.cat(of_parts, dim=1) if len(of_parts) > 1 else of_parts[0]
        operands.q_grad.addmm_(of_inner.t(), dropped)
        if of_x is None:
            return None, None, None, None
        if kept is None:
            of_x.addmm_(of_inner, operands.q)
        else:
            of_dropped = of_inner @ operands.q
            of_x.add_(torch.ops.aten.native_dropout_backward(of_dropped, kept, 1 / (1 - ctx.dropout)))
        return of_x.view(ctx.shape), None, None, None


def _parts(inner: Tensor, operands: Operands) -> tuple[Tensor, ...]:
    """The columns of each map's adapter among all of their (tokens, sum of ranks)."""
    return inner.split([len(p) for p in operands.p], dim=1)
