"""What all tests share: one thread per process, no network, the real inputs beside the checkout."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.ranks.launching import FinishedRun

# Set before torch is imported, and inherited by the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and backbones beside the checkout; the test is skipped where it is absent."""
    folder = CHECKOUT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the real inputs (../shared) are not here")
    return folder


@pytest.fixture(scope="session")
def deepspeed_run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> "FinishedRun":
    """The shipped recipe, trained for some steps by two processes under `deepspeed` on this host."""
    from tests.ranks.launching import STEPS, FinishedRun, launch, small_run, starting

    folder = tmp_path_factory.mktemp("deepspeed")
    with starting() as start:
        return FinishedRun(
            launch(start, folder, [*small_run(shared, folder), *STEPS]).wait(300), folder / "run"
        )


@pytest.fixture(scope="module", autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Restores the package's logger and consoles after each file: verbs add handlers, benchmarks mute all."""
    from lingo_ds.utils import logging as logs

    package = logging.getLogger("lingo_ds")
    before = list(package.handlers), package.level, package.propagate
    quiet = [(console, console.quiet) for console in (logs.console, logs.results)]
    yield
    for console, was_quiet in quiet:
        console.quiet = was_quiet
    for handler in package.handlers:
        if handler not in before[0]:
            handler.close()
    package.handlers, level, package.propagate = before
    package.setLevel(level)


@pytest.fixture(scope="module", autouse=True)
def _environment_as_before() -> Iterator[None]:
    """Restores the environment after each file: a process group sets ranks that commands would inherit."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests that need a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
