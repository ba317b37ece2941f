"""Every test in this folder starts real processes and is marked so."""

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of this folder `ranks`."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.ranks)
