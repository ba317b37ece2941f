"""How exactly a device computes: sums in full precision, and on request the same bits in every run."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic

from lingo_ds.utils.errors import Mistake, UserError

WORKSPACE, FIXED_SIZES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
"""Environment variable of cuBLAS, and its values with which products are the same each time."""


def sum_in_full_precision() -> None:
    """Sums of 16-bit products stay in fp32 until they are whole, for the rest of the process.

    By torch's default cuBLAS may round the parts of a long sum first. The adapters' gradients are sums over
    all tokens of a pack.
    """
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """While inside, every operation gives the same bits each time, where `wanted`: `train.deterministic`.

    torch then takes flash attention's backward pass with a fixed order of sums, and refuses operations that
    have none.

    Raises:
        UserError: where cuBLAS was told otherwise, or for an operation that cannot be repeated.
    """
    if not wanted:
        yield
        return
    found = os.environ.setdefault(WORKSPACE, FIXED_SIZES[0])
    if found not in FIXED_SIZES:
        rule = "lets products differ from run to run, which train.deterministic forbids"
        fix = f"unset it, or set {FIXED_SIZES[0]}"
        raise UserError(Mistake(WORKSPACE, found, rule, fix))
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill: Any = torch.utils.deterministic  # a module with a property, which types do not know
    filled, tuned = fill.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    fill.fill_uninitialized_memory = False  # for programs that read what they have not written
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        rule, fix = _refused(str(error))
        if not rule:
            raise
        raise UserError(Mistake("train.deterministic", "true", rule, fix)) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        fill.fill_uninitialized_memory, torch.backends.cudnn.benchmark = filled, tuned


def _refused(message: str) -> tuple[str, str]:
    """What torch's message says cannot be repeated, and the fix; empty where it is about something else."""
    if found := re.match(r"(.*?) does not have a deterministic implementation", message):
        return f"{found[1]} has no form here that gives the same bits each time", "set it to false"
    if "uses CuBLAS" in message:  # torch has read the variable before it was set here
        return "came too late for cuBLAS", f"export {WORKSPACE}={FIXED_SIZES[0]} before the program starts"
    return "", ""
