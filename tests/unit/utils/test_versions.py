"""Versions as they are installed."""

import numpy as np
import torch

from lingo_ds.utils.versions import versions


def test_versions_are_those_installed():
    found = versions()
    assert set(found) == {
        "lingo_ds",
        "python",
        "torch",
        "deepspeed",
        "transformers",
        "datasets",
        "numpy",
        "bitsandbytes",
    }
    assert torch.__version__.startswith(found["torch"].split("+")[0])
    assert found["numpy"] == np.__version__
    assert all(found.values())
