"""The pretend card, compiled once; tests that use it are skipped where it cannot be."""

import pytest

from tests.pretend.cards import CannotBuild, Cards, build


@pytest.fixture(scope="session")
def cards(pytestconfig: pytest.Config) -> Cards:
    """Calls functions in processes that have pretend cards."""
    assert pytestconfig.cache is not None
    try:
        return Cards(build(pytestconfig.cache.mkdir("pretend")))
    except CannotBuild as error:
        pytest.skip(str(error))
