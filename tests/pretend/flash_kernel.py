"""Flash attention for sequences of different length on the pretend card, in plain products and fp32.

It checks its arguments as torch's kernel does (flash_attn/flash_api.cpp).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

calls: list[str] = []
"""One entry per call: the dtype and the head size."""

backward_repeats: list[bool] = []
"""One entry per backward pass: whether it was asked to add in a fixed order."""


def _require(query: Tensor, key: Tensor, value: Tensor, of_query: Tensor, of_key: Tensor) -> None:
    capability, size = torch.cuda.get_device_capability(), query.shape[-1]
    assert torch.version.hip is None, "this is the kernel of CUDA"
    assert capability >= (8, 0), f"FlashAttention only supports Ampere GPUs or newer, not sm{capability}"
    assert query.dtype in (torch.float16, torch.bfloat16), f"FlashAttention: no kernel for {query.dtype}"
    assert query.dtype == key.dtype == value.dtype, "query, key and value must have the same dtype"
    assert of_query.dtype == of_key.dtype == torch.int32, "cu_seqlens must be int32"
    tensors = (query, key, value, of_query, of_key)
    assert all(x.is_cuda for x in tensors), "all must be on the device"
    assert all(x.stride(-1) == 1 for x in tensors), "the last dimension must be contiguous"
    assert size % 8 == 0 and size <= 256, f"head size {size}: must be a multiple of 8 and at most 256"
    assert query.shape[1] % key.shape[1] == 0, "heads of query must be whole groups of those of key"
    calls.append(f"{str(query.dtype).removeprefix('torch.')} {size}")


def _spans(of_query: Tensor, of_key: Tensor) -> Iterator[tuple[slice, slice]]:
    """The places of each sequence among queries and among keys."""
    queries, keys = of_query.tolist(), of_key.tolist()
    for k in range(len(queries) - 1):
        yield slice(queries[k], queries[k + 1]), slice(keys[k], keys[k + 1])


def _scores(query: Tensor, key: Tensor, *, scale: float, window: tuple[int, int]) -> Tensor:
    """(heads, queries, keys) of one sequence; a window is aligned at the end, as since FlashAttention 2.1."""
    ahead = len(key) - len(query)
    row = torch.arange(len(query))[:, None] + ahead
    column = torch.arange(len(key))
    seen = torch.ones(len(query), len(key), dtype=torch.bool)
    left, right = window
    if right >= 0:
        seen &= column <= row + right
    if left >= 0:
        seen &= column >= row - left
    products = query.transpose(0, 1) @ key.transpose(0, 1).mT
    return (products * scale).masked_fill(~seen, float("-inf"))


def _options(size: int, causal: bool, options: dict[str, Any]) -> dict[str, Any]:
    scale = options.get("scale")
    left, right = (options.get(f"window_size_{side}") for side in ("left", "right"))
    window = (-1 if left is None else left, 0 if causal else -1 if right is None else right)
    return {"scale": size**-0.5 if scale is None else scale, "window": window}


def _shared(x: Tensor, heads: int) -> Tensor:
    """Keys or values for each of the queries' heads."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    of_query: Tensor,
    of_key: Tensor,
    longest_query: int,
    longest_key: int,
    _dropout: float,
    causal: bool,
    _debug: bool,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _require(query, key, value, of_query, of_key)
    device, dtype, how = query.device, query.dtype, _options(query.shape[-1], causal, options)
    query, key, value = (x.cpu().float() for x in (query, key, value))
    of_query, of_key = of_query.cpu(), of_key.cpu()
    assert int(of_query.diff().max()) <= longest_query and int(of_key.diff().max()) <= longest_key
    assert int(of_query[-1]) == len(query) and int(of_key[-1]) == len(key)
    key, value = (_shared(x, query.shape[1]) for x in (key, value))
    outputs, sums = [], []
    for own, seen in _spans(of_query, of_key):
        scores = _scores(query[own], key[seen], **how)
        outputs.append((scores.softmax(-1) @ value[seen].transpose(0, 1)).transpose(0, 1))
        sums.append(scores.logsumexp(-1))
    seed = torch.empty(0, dtype=torch.uint64, device=device)
    mask = torch.empty(0, dtype=dtype, device=device)
    return torch.cat(outputs).to(device, dtype), torch.cat(sums, 1).to(device), seed, seed, mask


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _out: Tensor,
    _sums: Tensor,
    of_query: Tensor,
    of_key: Tensor,
    _longest_query: int,
    _longest_key: int,
    _dropout: float,
    causal: bool,
    _seed: Tensor,
    _offset: Tensor,
    **options: Any,
) -> tuple[Tensor, ...]:
    _require(query, key, value, of_query, of_key)
    backward_repeats.append(
        torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled()
    )
    assert grad.dtype == query.dtype, "the gradient must have the dtype of the query"
    device, dtype, how = query.device, query.dtype, _options(query.shape[-1], causal, options)
    query, key, value, grad = (x.cpu().float() for x in (query, key, value, grad))
    groups, heads = key.shape[1], query.shape[1]
    keys, values = (_shared(x, heads) for x in (key, value))
    grads = [torch.zeros_like(x) for x in (query, keys, values)]
    for own, seen in _spans(of_query.cpu(), of_key.cpu()):  # autograd is off inside an operator
        q, k, v, g = (x.transpose(0, 1) for x in (query[own], keys[seen], values[seen], grad[own]))
        weights = _scores(query[own], keys[seen], **how).softmax(-1)
        of_weights = g @ v.mT
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * how["scale"]
        grads[0][own] += (of_scores @ k).transpose(0, 1)
        grads[1][seen] += (of_scores.mT @ q).transpose(0, 1)
        grads[2][seen] += (weights.mT @ g).transpose(0, 1)
    grads[1:] = (x.unflatten(1, (groups, heads // groups)).sum(2) for x in grads[1:])
    return tuple(one.to(device, dtype) for one in grads)


_library = torch.library.Library("aten", "IMPL")
_library.impl("_flash_attention_forward", _forward, "CUDA")
_library.impl("_flash_attention_backward", _backward, "CUDA")
