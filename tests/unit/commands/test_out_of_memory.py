"""A host whose memory is full, as the CPU's allocator reports it: one line, status 2, and no traceback."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.backbone import backbone
from tests.pretend.runs import RECIPE, settings, some_data
from tests.unit.running import at_step, command


def fill(*_: Any, **__: Any) -> None:
    torch.empty(2**50, dtype=torch.uint8)


@pytest.fixture
def run(tmp_path) -> tuple[Path, list[str]]:
    some_data(tmp_path)
    return tmp_path / "run", settings(tmp_path / "data", "data.packing=off")


def test_in_training_and_the_same_command_goes_on(run):
    out, given = run
    with at_step(3, fill):
        status, shown = command("train", RECIPE, out, *given, "checkpoint.every=1")
    assert status == 2 and "Traceback" not in shown
    (said,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert said == (
        "error: train.micro_batch_size: '8': out of memory in training: 1048576.00 GiB more did not fit: "
        "set 4, or backbone.activation_checkpointing=true"
    )
    status, shown = command("train", RECIPE, out, *given, "train.micro_batch_size=4")
    assert status == 0 and "continuing with step 3" in shown


def test_while_the_backbone_is_loaded(run, monkeypatch):
    out, given = run
    monkeypatch.setattr(backbone, "fill_whole", fill)
    status, shown = command("train", RECIPE, out, *given)
    assert status == 2
    assert "error: zero.stage: '0': out of memory in loading the backbone: 1048576.00 GiB" in shown
    assert "add processes, or set backbone.quantization=nf4" in shown


def test_while_adapters_are_put_on_it(run, monkeypatch):
    out, given = run
    monkeypatch.setattr(AdapterBank, "initialize", fill)
    status, shown = command("train", RECIPE, out, *given)
    assert status == 2 and "Traceback" not in shown
    assert "error: zero.stage: '0': out of memory in making the adapters: 1048576.00 GiB" in shown
