"""Products through oneDNN: torch's numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lingo_ds.models.ops import matmul

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def made(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def distance(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [0, 1, 4])
@pytest.mark.parametrize("shape", [(50, 24), (1, 50, 24), (5, 10, 24)], ids=str)
def test_product_is_torchs(dtype: torch.dtype, rows: int, shape: tuple[int, ...]):
    x, weight = made(*shape, seed=1, dtype=dtype), made(rows, 24, seed=2, dtype=dtype)
    assert distance(matmul.product(x, weight), F.linear(x, weight)) <= TOLERANCE[dtype]


@pytest.fixture(params=[0, matmul.LARGE_WEIGHT], ids=["large", "small"])
def either_way(request, monkeypatch):
    monkeypatch.setattr(matmul, "LARGE_WEIGHT", request.param)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rank", [1, 4])
def test_added_product_is_torchs_and_in_place(dtype: torch.dtype, rank: int):
    x, weight = made(50, rank, seed=1, dtype=dtype), made(24, rank, seed=2, dtype=dtype)
    out = made(50, 24, seed=3, dtype=dtype)
    expected = out + F.linear(x, weight)
    assert matmul.add_product_(out, x, weight) is out
    assert distance(out, expected) <= TOLERANCE[dtype]


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_product_of_transposed_tensors_is_added(dtype: torch.dtype):
    """Neither is copied: (tokens, rank) and (tokens, size)."""
    inner, grad = made(50, 4, seed=1, dtype=dtype), made(50, 24, seed=2, dtype=dtype)
    out = made(4, 24, seed=3, dtype=dtype)
    expected = out + inner.T @ grad
    matmul.add_product_(out, inner.T, grad.T)
    assert distance(out, expected) <= TOLERANCE[dtype]


def test_only_fp32_goes_another_way():
    assert not any(
        matmul.supports_matmul(dtype, CPU) for dtype in (torch.float64, torch.bfloat16, torch.float16)
    )
    assert not matmul.supports_matmul(torch.float32, torch.device("cuda"))
