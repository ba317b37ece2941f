"""nccl's place is taken by gloo, over copies on the host, behind the checks that nccl makes."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

DTYPES = frozenset(
    {
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int8,
        torch.uint8,
        torch.bool,
    }
)
"""What nccl can send."""

ARGUMENTS = {
    "all_reduce": ["tensor"],
    "broadcast": ["tensor"],
    "all_gather": ["tensor_list", "tensor"],
    "all_gather_into_tensor": ["output_tensor", "input_tensor"],
}
"""The collectives in use, and the tensors among their arguments; the first is written to."""


class _Done:
    """A collective that is finished."""

    def wait(self, *_: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def _tensors(value: Any) -> list[Tensor]:
    return [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, Tensor)]


def _on_host(value: Any) -> Any:
    if isinstance(value, list | tuple) and _tensors(value):
        return [one.detach().cpu() for one in value]
    return value.detach().cpu() if isinstance(value, Tensor) else value


def _replace(name: str, names: list[str]) -> None:
    of_gloo = getattr(dist, name)

    def collective(*args: Any, async_op: bool = False, **options: Any) -> _Done | None:
        args = (*args, *(options.pop(one) for one in names[len(args) :]))
        given = [one for value in args for one in _tensors(value)]
        if not _of_nccl:
            return of_gloo(*args, async_op=async_op, **options)
        for one in given:
            assert one.is_cuda, f"nccl: {name}: no backend for tensors on the {one.device.type}"
            assert one.dtype in DTYPES, f"nccl: {name}: no {one.dtype}"
            assert one.is_contiguous(), f"nccl: {name}: tensors must be contiguous"
        copies = [_on_host(value) for value in args]
        try:
            of_gloo(*copies, **options)
        except RuntimeError:
            if os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "3") != "0":
                os.abort()  # as nccl's watchdog does where a connection is lost
            raise
        with torch.no_grad():
            for to, source in zip(_tensors(args[0]), _tensors(copies[0]), strict=True):
                to.copy_(source)
        return _Done() if async_op else None

    setattr(dist, name, collective)


_of_nccl: list[str] = []
"""Not empty while the process group is to be nccl's."""
_init_process_group = dist.init_process_group


def _begin(backend: str | None = None, **options: Any) -> None:
    _of_nccl[:] = ["nccl"] if backend == "nccl" else []
    _init_process_group("gloo" if backend == "nccl" else backend, **options)


dist.init_process_group = _begin
for _name, _names in ARGUMENTS.items():
    _replace(_name, _names)
