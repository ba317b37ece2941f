"""The pretend card, compiled once; tests that use it are skipped where it cannot be."""

from pathlib import Path

import pytest

from tests.pretend.cards import CannotBuild, Cards, build
from tests.pretend.runs import some_data


@pytest.fixture(scope="session")
def cards(pytestconfig: pytest.Config) -> Cards:
    """Calls functions in processes that have pretend cards."""
    assert pytestconfig.cache is not None
    try:
        return Cards(build(pytestconfig.cache.mkdir("pretend")))
    except CannotBuild as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder for runs, with data to train on."""
    folder = tmp_path_factory.mktemp("runs")
    some_data(folder)
    return folder
