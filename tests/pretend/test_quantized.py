"""Quantised maps on the pretend card, by bitsandbytes' kernels in plain torch: the CPU's losses.

Its kernels of CUDA cannot run here; which kernel is called, on tensors of which device, can be seen.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pretend.runs import STEPS, some_data, train

pytestmark = pytest.mark.slow  # in plain torch nf4 takes a minute
FORMS = ("int8", "nf4")


def train_quantized(folder: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:  # bitsandbytes would register kernels that are not there
        patch.setattr(torch.cuda, "is_available", lambda: False)
        import bitsandbytes.functional  # noqa: F401

    return {
        form: train(folder / "data", folder / form, f"backbone.quantization={form}")["losses"]
        for form in FORMS
    }


@pytest.fixture(scope="module")
def losses(cards, tmp_path_factory) -> dict[str, dict[str, list[float]]]:
    if find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    folder = tmp_path_factory.mktemp("quantized")
    some_data(folder)
    (ours,) = cards.call(train_quantized, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
        more = ["backbone.dtype=bf16"]
        theirs = {}
        for form in FORMS:
            done = train(folder / "data", folder / f"cpu {form}", f"backbone.quantization={form}", *more)
            theirs[form] = done["losses"]
    return {"card": ours, "cpu": theirs}


@pytest.mark.parametrize("form", FORMS)
def test_losses_are_the_cpus(losses, form):
    assert len(losses["card"][form]) == STEPS
    assert losses["card"][form] == pytest.approx(losses["cpu"][form], rel=0.02)
