"""`make gpu` begins with a line on the card, or on its absence."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_without_a_card_one_line_says_so(tmp_path):
    made = subprocess.run(
        ["make", "gpu", f"PYTHON={sys.executable}", f"READY={tmp_path / 'none'}"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    first, *rest = made.stderr.splitlines()
    assert first == (
        f"error: GPU: 'none': torch {torch.__version__} sees no card here: "
        "run it where nvidia-smi lists one and torch is a CUDA build (docs/gpu.md)"
    )
    assert made.returncode == 2 and len(rest) == 1  # make's own: the target that failed
