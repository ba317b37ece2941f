"""Attention over packs on a CPU, by `kernels/attention.cpp`.

It is the package's own because torch's kernel for the CPU goes through MKL, which does not use AVX-512 on
every processor that has it, computes what the mask hides, and needs every example's keys copied behind the
prefix's. This one does none of that and takes half of the time (docs/performance.md).
"""

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lingo_ds.models.ops.compiled import find_kernel, library


class _Tensor(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("by_token", ctypes.c_int64), ("by_head", ctypes.c_int64)]


class _Pack(ctypes.Structure):
    _fields_ = [
        *((name, _Tensor) for name in ("query", "key", "value", "out")),
        *((name, ctypes.c_void_p) for name in ("log_sums", "sequences")),
        *((name, ctypes.c_int64) for name in ("count", "tokens", "heads", "key_heads", "size")),
        *((name, ctypes.c_int64) for name in ("window", "causal", "threads")),
        ("scale", ctypes.c_float),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [(name, _Tensor) for name in ("out", "query", "key", "value")]


def supports_attention(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `attend` takes such queries: fp32 and below on an x86 CPU with AVX2 and a C++ compiler."""
    return (
        device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16, torch.float16)
        and library() is not None
    )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Tensor,
    *,
    scale: float,
    window: int | None,
    causal: bool,
) -> Tensor:
    """Attention of each sequence of a pack, in fp32 for every input dtype, with gradients to all three.

    Args:
        query: (tokens, heads, size).
        key: (tokens, key heads, size); a key head serves `heads` / `key heads` queries.
        value: likewise.
        sequences: (n, 3) int64: each sequence's first token, its own tokens, and how many of the pack's
            first tokens it sees before them.
        scale: factor on the scores.
        window: a token sees itself and the `window` - 1 tokens before; None: all.
        causal: False: every token sees all of its sequence.

    Returns:
        (tokens, heads, size) in the inputs' dtype.
    """
    return _Attention.apply(query, key, value, _Form(sequences, scale, window, causal))


class _Form(NamedTuple):
    """What attends to what, and how: the arguments of `attend` with these names."""

    sequences: Tensor
    scale: float
    window: int | None
    causal: bool


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, form: _Form) -> Tensor:
        out = torch.empty(query.shape)
        log_sums = torch.empty(query.shape[1], len(query))
        ctx.form = form
        inputs = [_dense(part) for part in (query, key, value)]  # held while the kernel reads them
        find_kernel("attend")(ctypes.byref(_pack([*inputs, out], log_sums, form)))
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, log_sums = ctx.saved_tensors
        inputs = [_dense(part) for part in tensors]
        of_out = _dense(grad)
        of_query, of_key, of_value = map(torch.empty_like, inputs[:3])
        gradients = _Gradients(*map(_tensor, (of_out, of_query, of_key, of_value)))
        pack = _pack(inputs, log_sums, ctx.form)
        find_kernel("attend_backward")(ctypes.byref(pack), ctypes.byref(gradients))
        return of_query.to(grad.dtype), of_key.to(grad.dtype), of_value.to(grad.dtype), None


def _dense(x: Tensor) -> Tensor:
    """`x` in fp32, each head's entries of a token next to each other."""
    x = x.float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _tensor(x: Tensor) -> _Tensor:
    return _Tensor(x.data_ptr(), x.stride(0), x.stride(1))


def _pack(tensors: Sequence[Tensor], log_sums: Tensor, form: _Form) -> _Pack:
    """The kernel's arguments; `tensors` are query, key, value and output."""
    query, key, *_ = tensors
    tokens, heads, size = query.shape
    return _Pack(
        *map(_tensor, tensors),
        log_sums.data_ptr(),
        form.sequences.data_ptr(),
        len(form.sequences),
        tokens,
        heads,
        key.shape[1],
        size,
        form.window or 0,
        form.causal,
        torch.get_num_threads(),
        form.scale,
    )
