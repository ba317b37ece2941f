"""Fixtures: a backbone on disk, logged warnings, and the dtype of all tensors."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from lingo_ds.models.backbone import fused
from tests.unit.models.random_models import FAMILIES, random_model, save


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """Warnings of lingo_ds's own loggers, wherever an earlier test routed them."""
    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("lingo_ds").addHandler(handler)
    yield said
    logging.getLogger("lingo_ds").removeHandler(handler)


@pytest.fixture
def folder(tmp_path) -> Path:
    return save(random_model(FAMILIES["llama"], tied=True), tmp_path)


@pytest.fixture
def unfused(monkeypatch) -> None:
    """No fused kernels, which round otherwise: what is loaded is compared to the bit."""
    monkeypatch.setattr(fused, "library", lambda: None)
