"""Precisions and golden numbers that tests of several rooms use."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture
def float64() -> Iterator[None]:
    """Everything inside, the bank's masters included, in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The dtype of every tensor that is made, the bank's masters included."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict:
    """Numbers of an independent float64 implementation."""
    return json.loads((shared / "golden" / "rank_sampling.json").read_text())
