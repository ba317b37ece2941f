"""Environment variables that a command sets for libraries."""

import os

import pytest

from lingo_ds.commands.cli import main
from lingo_ds.utils import environment
from lingo_ds.utils.environment import ALLOCATOR_SETTINGS, set_library_defaults

GROWING = "expandable_segments:True"


def after(given: dict[str, str]) -> dict[str, str]:
    set_library_defaults(given)
    return given


def test_segments_of_gpu_memory_grow():
    assert after({})["PYTORCH_CUDA_ALLOC_CONF"] == GROWING


@pytest.mark.parametrize("name", ALLOCATOR_SETTINGS)
def test_what_the_user_has_set_is_kept(name):
    given = {name: "max_split_size_mb:512", "TORCH_CPP_LOG_LEVEL": "INFO"}
    assert after(dict(given)) == given


def test_amds_gpus_have_none(monkeypatch):
    monkeypatch.setattr(environment, "version", lambda _: "2.11.0+rocm7.0")
    assert set(after({})) == {"TORCH_CPP_LOG_LEVEL"}


def test_every_command_sets_it(monkeypatch, tmp_path, capsys):
    for name in ALLOCATOR_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert main(["plan", "--config", str(tmp_path / "none.yaml")]) == 2
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == GROWING
