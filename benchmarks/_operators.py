"""Which operators a model's layers start, with their bytes and FLOP, on tensors that hold no values."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

FREE = re.compile(
    r"prim\.|aten\.(view|_unsafe_view|_reshape_alias|expand|slice|select|split|split_with_sizes|t|transpose|permute"
    r"|unsqueeze|squeeze|detach|alias|as_strided|unbind|lift_fresh|empty|empty_like|empty_strided|new_empty"
    r"|new_empty_strided|sym_size|_version|set_|unflatten|narrow|diagonal|chunk)\b"
)
"""Operators that start no kernel."""
PRODUCTS = re.compile(r"aten\.(mm|addmm|bmm|baddbmm_?|addmm_|_scaled_mm|linear|matmul)\b")
BACKWARD_PRODUCTS = 2.5
"""Products of attention's backward pass beside those of its forward pass: five instead of two."""

KINDS = ("frozen products", "adapter products", "attention", "gathered", "element by element")


class Operator(NamedTuple):
    """One call of an operator on the device.

    Attributes:
        section: what was computed, as `Sections` names it.
        name: the operator's.
        kind: one of `KINDS`.
        bytes: of all tensors that it reads and writes.
        flops: of products and attention; 0 for the rest.
    """

    section: str
    name: str
    kind: str
    bytes: int
    flops: int


class OperatorCount(TorchDispatchMode):
    """Inside, tensors of floats hold no values; each operator on them is noted with the current section.

    Whole numbers and masks stay real, so that places of tokens and lengths are what they are in training.

    Attributes:
        section: what is computed now.
        operators: those noted so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.section = "outside"
        self.operators: list[Operator] = []
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(tensors((args, kwargs)))
        if _stays_real(function, args, kwargs, given):
            return function(*args, **kwargs)
        with self._fake:
            out = function(*args, **kwargs)
        frozen = any(_is_frozen(one) for one in given)
        if frozen and function.is_view:
            for view in tensors(out):
                view.of_frozen_weight = True
        self._note(function, args, kwargs, out, frozen=frozen)
        return out

    def _note(self, function: Any, args: tuple, kwargs: dict[str, Any], out: Any, *, frozen: bool) -> None:
        name, given, results = str(function), list(tensors((args, kwargs))), list(tensors(out))
        if FREE.match(name) or not any(one.is_cuda for one in (*given, *results)):
            return
        written = [one for one in results if not any(one is other for other in given)]
        in_place = len(results) - len(written)
        size = sum(map(_bytes, given)) + sum(map(_bytes, written))
        size += sum(map(_bytes, results[:1])) if in_place else 0
        kind = _kind(name, frozen=frozen)
        flops = _flops(function, args, kwargs, out, given) if kind in KINDS[:3] else 0
        self.operators.append(Operator(self.section, name, kind, size, flops))


def _stays_real(function: Any, args: tuple, kwargs: dict[str, Any], given: list[Tensor]) -> bool:
    """Whether an operator has to do with whole numbers and masks alone."""
    if given:
        return not any(isinstance(one, FakeTensor) or one.is_floating_point() for one in given)
    if (dtype := kwargs.get("dtype")) is not None:
        return not dtype.is_floating_point
    return str(function).startswith("aten.arange") and all(isinstance(one, int) for one in args)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def _bytes(tensor: Tensor) -> int:
    """Bytes that are read or written of a tensor: expanded dimensions once."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride else 1
    return size


def _is_frozen(tensor: Tensor) -> bool:
    """Whether it is a weight that was loaded before counting began, or a view of one."""
    real = not isinstance(tensor, FakeTensor) and tensor.is_floating_point()
    return real or getattr(tensor, "of_frozen_weight", False)


def _kind(name: str, *, frozen: bool) -> str:
    if "varlen" in name or "flash" in name or "attention" in name:
        return "attention"
    if PRODUCTS.match(name):
        return "frozen products" if frozen else "adapter products"
    return "gathered" if re.match(r"aten\._?(unsafe_)?(index|gather)", name) else "element by element"


def _flops(function: Any, args: tuple, kwargs: dict[str, Any], out: Any, given: Sequence[Tensor]) -> int:
    starts = [one for one in given if one.dtype == torch.int32 and one.ndim == 1][:2]
    if len(starts) == 2:
        query = next(one for one in given if one.ndim == 3)
        return _attention_flops(query, *starts, backward="backward" in str(function))
    packet = function._overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    first, second = given[-2:]
    return 2 * first.numel() * second.shape[-1]


def _attention_flops(query: Tensor, of_query: Tensor, of_key: Tensor, *, backward: bool) -> int:
    """Of causal attention from where the sequences start among queries and keys, without what is hidden."""
    queries, keys = of_query.diff().double(), of_key.diff().double()
    pairs = float((queries * (keys - queries + (queries + 1) / 2)).sum())
    forward = 4 * pairs * query.shape[-1] * query.shape[-2]
    return int(forward * (BACKWARD_PRODUCTS if backward else 1))


class Sections:
    """Tells when a layer's forward or backward pass begins and ends: `enter` is called with its name."""

    def __init__(self, layers: Sequence[nn.Module], enter: Callable[[str], None]):
        """Attaches to the layers, for as long as they live."""
        for k, layer in enumerate(layers):
            layer.register_forward_pre_hook(
                lambda _, args, k=k: (_mark(args[0], enter, "outside", f"forward {k}"), *args[1:])
            )
            layer.register_forward_hook(
                lambda _, args, out, k=k: _mark_output(out, enter, f"backward {k}", "outside")
            )


def _mark_output(out: Any, enter: Callable[[str], None], backward: str, forward: str) -> Any:
    if isinstance(out, tuple):
        return (_mark(out[0], enter, backward, forward), *out[1:])
    return _mark(out, enter, backward, forward)


def _mark(x: Tensor, enter: Callable[[str], None], backward: str, forward: str) -> Tensor:
    """The same tensor; the forward pass enters one section there, the backward pass another."""
    return _Mark.apply(x, enter, backward, forward)


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, enter, backward, forward):
        ctx.enter, ctx.section = enter, backward
        enter(forward)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.enter(ctx.section)
        return grad, None, None, None
