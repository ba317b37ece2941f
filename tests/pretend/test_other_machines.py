"""Older GPUs, and hosts that lack what a profile needs: a way round, or words."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.pretend.runs import RECIPE, losses_on_cpu, settings, train
from tests.unit.running import command


def train_on(capability: tuple[int, int], folder: Path, *more: str) -> dict[str, Any]:
    """A run on a GPU of that compute capability, and what then is said of NVMe without a CUDA toolkit."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    from lingo_ds.models.backbone import zero
    from tests.pretend import flash_kernel
    from tests.pretend.device import CARD

    CARD.capability = capability
    seen = train(folder / "data", folder / "old", *more)
    assert zero.cpp_extension.CUDA_HOME is None
    type(AsyncIOBuilder()).is_compatible = lambda self, verbose=False: True
    nvme = ["zero.stage=3", "zero.profile=zero3_nvme", f"zero.nvme_path={folder / 'disk'}"]
    refused = command("train", RECIPE, folder / "nvme", *settings(folder / "data", *nvme))
    log = (folder / "old" / "train.log").read_text()
    return {**seen, "flash": len(flash_kernel.calls), "log": log, "nvme": refused}


@pytest.fixture(scope="module")
def on_t4(cards, folder) -> dict[str, Any]:
    if os.environ.get("CUDA_HOME"):
        pytest.skip("there is a CUDA toolkit here")
    (value,) = cards.call(train_on, (7, 5), folder)
    return value


@pytest.fixture(scope="module")
def on_cpu(folder) -> list[float]:
    return losses_on_cpu(folder, "fp16")


def test_a_t4_trains_in_fp16_without_flash_attention(on_t4, on_cpu):
    assert on_t4["weights"] == {"cuda:0 float16"} and on_t4["flash"] == 0
    assert on_t4["losses"] == pytest.approx(on_cpu, rel=0.02)


def test_the_log_says_once_which_attention_is_used_and_why(on_t4):
    lines = [line for line in on_t4["log"].splitlines() if "attention of packs" in line]
    assert len(lines) == 1
    assert "flash attention needs compute capability 8.0, and this GPU has 7.5" in lines[0]


def test_nvme_without_a_cuda_toolkit_is_told_in_words(on_t4):
    status, shown = on_t4["nvme"]
    assert status == 2
    assert "error: zero.profile: 'offload_param.device: nvme': needs the CUDA toolkit" in shown
    assert "or take zero3_offload" in shown
