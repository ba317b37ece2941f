"""A full memory in words: which errors are one, and what they say."""

import gc
import weakref

import pytest
import torch

from lingo_ds.utils.errors import LoneError, UserError
from lingo_ds.utils.out_of_memory import Remedy, describe_shortage, report_out_of_memory

OF_A_GPU = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which "
    "1.21 GiB is free. Including non-PyTorch memory, this process has 77.93 GiB memory in use."
)


def lower() -> Remedy:
    return Remedy("train.micro_batch_tokens", 512, "set 256")


def fill() -> None:
    torch.empty(1 << 50, dtype=torch.uint8)


def test_what_a_gpu_says():
    said = describe_shortage(torch.OutOfMemoryError(OF_A_GPU))
    assert said == "2.50 GiB more did not fit, 1.21 GiB of 79.15 GiB were free"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"),
    ],
)
def test_other_full_memories(error):
    assert describe_shortage(error) == "no more fitted"


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), OSError("out of memory"), UserError([]), ValueError("x")]
)
def test_other_errors_stay_what_they_are(error):
    assert describe_shortage(error) is None
    with pytest.raises(type(error)) as caught, report_out_of_memory("training", lower):
        raise error
    assert caught.value is error


def test_a_full_host_is_reported_with_the_setting():
    with pytest.raises(LoneError) as caught, report_out_of_memory("training", lower):
        fill()
    assert str(caught.value) == (
        "error: train.micro_batch_tokens: '512': out of memory in training: "
        "1048576.00 GiB more did not fit: set 256"
    )


def test_what_was_allocated_is_free_once_it_is_reported():
    kept = []

    def work() -> None:
        activations = torch.zeros(8)
        kept.append(weakref.ref(activations))
        fill()

    with pytest.raises(LoneError) as caught, report_out_of_memory("training", lower):
        work()
    assert caught.value.__suppress_context__
    gc.collect()
    assert kept[0]() is None
