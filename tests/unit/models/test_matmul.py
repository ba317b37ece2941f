"""Products through oneDNN: torch's numbers and gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lingo_ds.models.ops import matmul

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def made(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


def compare(ours: Callable[..., Tensor], torchs: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    found, expected = ours(*inputs), torchs(*inputs)
    weights = made(*expected.shape, seed=9, dtype=expected.dtype).detach()
    pairs = zip(
        [found, *torch.autograd.grad((found * weights).sum(), inputs)],
        [expected, *torch.autograd.grad((expected * weights).sum(), inputs)],
        strict=True,
    )
    for one, other in pairs:
        assert one.shape == other.shape
        assert (one - other).norm() <= TOLERANCE[one.dtype] * other.norm()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_map_has_torchs_gradients(dtype: torch.dtype, rank: int):
    inputs = [made(50, 24, seed=1, dtype=dtype), made(rank, 24, seed=2, dtype=dtype)]
    compare(matmul.linear, F.linear, inputs)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rank", [0, 1, 4])
@pytest.mark.parametrize("shape", [(50, 24), (1, 50, 24), (5, 10, 24)], ids=str)
def test_added_product_has_torchs_gradients(dtype: torch.dtype, rank: int, shape: tuple[int, ...]):
    inputs = [
        made(*shape, seed=1, dtype=dtype),
        made(50, rank, seed=2, dtype=dtype),
        made(rank, 24, seed=3, dtype=dtype),
    ]
    compare(
        lambda out, x, w: matmul.add_product_(out.clone(), x, w, scale=0.7),
        lambda out, x, w: out + 0.7 * (x @ w).view(out.shape),
        inputs,
    )


def test_written_in_place():
    output = torch.zeros(2, 3, 4)
    found = matmul.add_product_(output, torch.ones(6, 2), torch.ones(2, 4), scale=1.0)
    assert found.data_ptr() == output.data_ptr()
    assert torch.equal(output, torch.full((2, 3, 4), 2.0))


def test_only_fp32_goes_another_way():
    assert not any(
        matmul.supports_matmul(dtype, CPU) for dtype in (torch.float64, torch.bfloat16, torch.float16)
    )
    assert not matmul.supports_matmul(torch.float32, torch.device("cuda"))
