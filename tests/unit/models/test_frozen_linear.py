"""Frozen maps through oneDNN: the same map, and the same gradient of its input."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lingo_ds.models.backbone.frozen_linear import freeze_maps
from lingo_ds.models.ops.frozen_map import FrozenMap

CPU = torch.device("cpu")


def frozen(kind: str) -> nn.Module:
    torch.manual_seed(0)
    module = Conv1D(24, 40) if kind == "conv1d" else nn.Linear(40, 24, bias=kind == "bias")
    if kind == "conv1d":
        module.bias.data.normal_()
    return module.requires_grad_(False)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 7, 40), (1, 300, 40)], ids=str)
@pytest.mark.parametrize("kind", ["plain", "bias", "conv1d"])
def test_map_and_gradient_are_torchs(kind: str, shape: tuple[int, ...]):
    module = frozen(kind)
    x, ours = (
        torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)
    )
    expected, found = module(x), FrozenMap(module)(ours)
    assert found.shape == expected.shape
    assert distance(found, expected) < 1e-6
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    assert distance(ours.grad, x.grad) < 1e-6


def test_output_may_be_written_to():
    """As an adapter does; what flows back through the map is the gradient of the sum."""
    module = frozen("bias")
    x = torch.randn(1, 5, 40, requires_grad=True)
    out = FrozenMap(module)(x)
    out.mul_(2)
    out.sum().backward()
    assert distance(x.grad, 2 * module.weight.sum(0).expand(1, 5, 40)) < 1e-6


def test_weight_is_read_anew_in_the_backward_pass():
    """Between the passes ZeRO-3 takes the whole weight away and brings it again."""
    module = frozen("plain")
    x, whole = torch.randn(3, 40, requires_grad=True), module.weight.data
    out = FrozenMap(module)(x)
    module.weight.data = torch.empty(0)
    module.weight.data = whole.clone()
    out.sum().backward()
    assert distance(x.grad, whole.sum(0).expand(3, 40)) < 1e-6


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_maps_are_replaced_where_that_saves_something(dtype: torch.dtype, sharded: bool):
    """Below fp32 torch uses oneDNN itself, but keeps views of gathered weights."""
    skeleton = nn.ModuleDict({"inside": frozen("bias"), "outside": frozen("bias")})
    spec = SimpleNamespace(linear_maps={"inside": (24, 40)}, skeleton=skeleton)
    freeze_maps(spec, dtype=dtype, device=CPU, sharded=sharded)
    ways = {name: type(module.forward).__name__ for name, module in skeleton.items()}
    replaced = sharded or (dtype == torch.float32 and torch.backends.mkldnn.is_available())
    assert ways == {"inside": "FrozenMap" if replaced else "method", "outside": "method"}


def test_float64_is_computed_in_float64():
    module = frozen("bias").double()
    x = torch.randn(3, 40, dtype=torch.float64)
    assert torch.equal(FrozenMap(module)(x), module(x))
