"""GPUs and networks by name."""

import pytest

from lingo_ds.planning.cost.machine import ACHIEVED, GPUS, gpu_machine, link_rate
from lingo_ds.utils.errors import UserError


@pytest.mark.parametrize(
    "text, rate", [("400Gb", 50e9), ("8x400Gb", 400e9), ("100Mb", 12.5e6), ("2.5Gbit", 312.5e6)]
)
def test_links(text, rate):
    assert link_rate(text) == pytest.approx(rate)


@pytest.mark.parametrize("text", ["400", "400GB", "0Gb", "fast", "x400Gb"])
def test_links_that_are_none(text):
    with pytest.raises(UserError, match="--link"):
        link_rate(text)


def test_every_gpu_has_a_peak():
    for name in GPUS:
        machine = gpu_machine(name)
        assert 1e13 < machine.products[0] / ACHIEVED["products"] < 1e16, name
