"""Rates, shares and peaks by arithmetic that is done by hand."""

import psutil
import pytest
import torch

from lingo_ds.monitor.throughput import Throughput, device_peak_flops, peak_device_bytes, peak_host_bytes

pytestmark = pytest.mark.filterwarnings("error")


def test_throughput_arithmetic():
    rates = Throughput()
    assert (rates.tokens_per_second, rates.padding_fraction, rates.mfu(1.0, 1.0)) == (0, 0, None)
    rates.step(examples=8, real_tokens=300, total_tokens=400, seconds=2.0)
    rates.step(examples=8, real_tokens=500, total_tokens=600, seconds=2.0)
    assert rates.seconds == 4
    assert rates.examples_per_second == 4
    assert rates.tokens_per_second == rates.recent_tokens_per_second == 200
    assert rates.padding_fraction == pytest.approx(0.2)
    assert rates.mfu(6e9, 4e12) == pytest.approx(0.3)
    assert rates.mfu(6e9, None) is None


def test_what_packs_save_is_no_padding_and_no_work():
    """8 examples of 100 tokens, 40 of them a prefix that is computed once; nothing is padded."""
    rates = Throughput()
    rates.step(
        examples=8, real_tokens=800, total_tokens=520, shared_tokens=280, seconds=2.0, input_seconds=0.5
    )
    assert rates.tokens_per_second == 400
    assert rates.padding_fraction == 0
    assert rates.shared_prefix_fraction == pytest.approx(0.35)
    assert rates.input_wait_fraction == pytest.approx(0.25)
    assert rates.mfu(1.0, 1000.0) == pytest.approx(0.26)  # of the computed 520 tokens


def test_recent_rate_forgets_slow_early_steps():
    rates = Throughput()
    rates.step(examples=1, real_tokens=10, total_tokens=10, seconds=100.0)
    for _ in range(20):
        rates.step(examples=1, real_tokens=10, total_tokens=10, seconds=0.1)
    assert rates.recent_tokens_per_second == pytest.approx(100)
    assert rates.tokens_per_second < 3


def test_memory_and_peak():
    resident = psutil.Process().memory_info().rss
    assert 0.9 * resident < peak_host_bytes() < 100 * resident  # bytes, not KiB
    if not torch.cuda.is_available():
        assert peak_device_bytes() is None
        assert device_peak_flops() is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Tesla P4", None),
    ],
)
def test_device_peaks_by_name(name, peak):
    assert device_peak_flops(name) == peak
