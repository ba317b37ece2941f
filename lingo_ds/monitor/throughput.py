"""Rates of training steps, peak memory of a process, and peak FLOP/s of devices."""

import re
import resource
import sys
from collections import deque

import torch

_RECENT_STEPS = 20

# Dense (no sparsity) bf16 tensor peak in FLOP/s, from the vendors' data sheets. The first row whose words all
# occur in the device's name counts; a slice of a device (MIG) and a device not listed have no known peak.
_PEAK_FLOPS = (
    (("GB200",), 2500e12),
    (("B200",), 2250e12),
    (("GH200",), 989e12),
    (("H200", "NVL"), 835e12),
    (("H200",), 989e12),
    (("H100", "NVL"), 835e12),
    (("H100", "PCIe"), 756e12),
    (("H100",), 989e12),
    (("H800", "PCIe"), 756e12),
    (("H800",), 989e12),
    (("H20",), 148e12),
    (("A100",), 312e12),
    (("A800",), 312e12),
    (("A40",), 149.7e12),
    (("A30",), 165e12),
    (("A10",), 125e12),
    (("RTX", "A6000"), 154.8e12),
    (("L40S",), 362e12),
    (("L40",), 181e12),
    (("L4",), 121e12),
    (("MI300X",), 1307.4e12),
    (("MI250X",), 383e12),
)


class Throughput:
    """Adds up examples, tokens and seconds of training steps; time between steps is not counted.

    Counts of all processes together give the run's rates, counts of one process that process's. A rate is 0
    before the first step.
    """

    def __init__(self) -> None:
        self.examples = 0
        self.real_tokens = 0
        self.total_tokens = 0
        self.shared_tokens = 0
        self.seconds = 0.0
        self.input_seconds = 0.0
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT_STEPS)

    def step(
        self,
        *,
        examples: int,
        real_tokens: int,
        total_tokens: int,
        seconds: float,
        shared_tokens: int = 0,
        input_seconds: float = 0.0,
    ) -> None:
        """Counts one finished step.

        Args:
            examples: number of labelled sequences.
            real_tokens: number of tokens without padding.
            total_tokens: number of tokens computed, padding included.
            seconds: duration of the step.
            shared_tokens: real tokens that were not computed, since examples share their prefix.
            input_seconds: part of `seconds` spent waiting for batches.
        """
        self.examples += examples
        self.real_tokens += real_tokens
        self.total_tokens += total_tokens
        self.shared_tokens += shared_tokens
        self.seconds += seconds
        self.input_seconds += input_seconds
        self._recent.append((real_tokens, seconds))

    @property
    def examples_per_second(self) -> float:
        """Examples per second of training."""
        return _rate(self.examples, self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second of training."""
        return _rate(self.real_tokens, self.seconds)

    @property
    def recent_tokens_per_second(self) -> float:
        """Real tokens per second over the last 20 steps."""
        return _rate(sum(tokens for tokens, _ in self._recent), sum(seconds for _, seconds in self._recent))

    @property
    def padding_fraction(self) -> float:
        """Share of computed tokens that were padding, 0 to 1."""
        computed = self.real_tokens - self.shared_tokens
        return 1 - computed / self.total_tokens if self.total_tokens else 0.0

    @property
    def shared_prefix_fraction(self) -> float:
        """Share of real tokens that were not computed, since a pack holds its prefix once, 0 to 1."""
        return _rate(self.shared_tokens, self.real_tokens)

    @property
    def input_wait_fraction(self) -> float:
        """Share of the time spent waiting for batches, 0 to 1."""
        return _rate(self.input_seconds, self.seconds)

    def mfu(self, flops_per_token: float, peak_flops: float | None) -> float | None:
        """Model FLOPs utilisation: the share of the devices' peak spent on computed tokens.

        Args:
            flops_per_token: forward and backward FLOPs of the model for one token.
            peak_flops: peak FLOP/s of all devices whose tokens are counted here; None where unknown.

        Returns:
            A share, 0 to 1; None where the peak is unknown or no step is counted.
        """
        if peak_flops is None or not self.seconds:
            return None
        return flops_per_token * _rate(self.real_tokens - self.shared_tokens, self.seconds) / peak_flops


def peak_host_bytes() -> int:
    """Largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def peak_device_bytes() -> int | None:
    """Largest device memory of this process's tensors so far, in bytes; None without CUDA."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def device_peak_flops(name: str | None = None) -> float | None:
    """Dense bf16 peak of a device, in FLOP/s.

    Args:
        name: the device's name as CUDA gives it; None: that of this process's device.

    Returns:
        The peak; None for the CPU, a slice of a device (MIG) and devices that are not in the table.
    """
    if name is None:
        if not torch.cuda.is_available():
            return None
        name = torch.cuda.get_device_name()
    words = set(re.findall(r"\w+", name))
    if "MIG" in words:
        return None
    return next((peak for required, peak in _PEAK_FLOPS if words.issuperset(required)), None)


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds else 0.0
