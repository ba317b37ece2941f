"""A quantised backbone in a copy on each of two processes: the run of one process."""

from pathlib import Path

import pytest

from lingo_ds.export.adapter_folder import read_card
from tests.ranks.test_world_sizes import assert_same_run, one_and_two

pytest.importorskip("bitsandbytes", reason="needs pip install lingo_ds[quant]")


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_two_copies_learn_what_one_learns(shared, tmp_path: Path, quantization: str):
    one, two = one_and_two(shared, tmp_path, backbone={"quantization": quantization})
    assert_same_run(two, one)
    assert two.report["zero"] == {"stage": 0, "shard_group": 1, "hpz": 1, "quantized_weights": False}
    assert two.report["sync"]["divergences"] == 0 and two.report["sync"]["audits"] > 0
    assert read_card(two.folder / "adapter").backbone.quantization == quantization
