"""Reads a recipe's text, or collects the mistakes in it."""

import pytest

from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import load_runs
from lingo_ds.utils.errors import Mistake, UserError
from tests.unit.config.recipes import MINIMAL


@pytest.fixture
def load(tmp_path):
    """Reads a recipe's text, with overrides."""

    def load(text: str = MINIMAL, *overrides: str) -> RunConfig:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_runs(path, list(overrides))

    return load


@pytest.fixture
def refused(load):
    """The mistakes in a recipe's text and overrides."""

    def refused(text: str = MINIMAL, *overrides: str) -> list[Mistake]:
        with pytest.raises(UserError) as caught:
            load(text, *overrides)
        lines = str(caught.value).splitlines()
        assert all(line.startswith("error: ") for line in lines)
        return caught.value.mistakes

    return refused
