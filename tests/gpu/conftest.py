"""Tests that a card alone can answer; `make gpu` runs them. Elsewhere they are skipped."""

from pathlib import Path

import pytest

from tests.pretend.runs import some_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder for runs, with data to train on."""
    folder = tmp_path_factory.mktemp("runs")
    some_data(folder)
    return folder
