"""The rates that an estimate counts with: computing, reading memory and talking to other processes."""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from lingo_ds.monitor.throughput import device_peak_flops
from lingo_ds.planning.layer import HOLES
from lingo_ds.utils.errors import Mistake, UserError

US = 1e-6


class Wire(NamedTuple):
    """A connection.

    Attributes:
        rate: bytes/s that pass in each direction.
        latency: seconds of one step of a ring over it.
        hidden: share of the computing time behind which gathers over it can hide.
    """

    rate: float
    latency: float
    hidden: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Rates of one process while all processes of its host compute.

    Attributes:
        name: name for a person to read.
        memory_bytes: memory that one process may use.
        runtime_bytes: memory of a process without any model: libraries, context, buffers.
        holes: bytes that the allocator takes for each byte of activations.
        widths: widths of the residual stream at which the two following rates are known.
        products: FLOP/s of products with frozen weights.
        adapters: FLOP/s of products of low rank, beside the memory they read.
        attention: FLOP/s of attention, forward and backward.
        causal_half: whether attention leaves out what the causal mask hides.
        memory: bytes/s that element-by-element kernels read and write.
        dispatch: seconds to start one operation.
        runs_ahead: whether the host starts operations while the device computes.
        inside: connection of one process to others of its host.
        between: connection of one host, with all of its cards, to other hosts.
        trees: whether an all-reduce may go along trees, which need fewer steps than a ring.
    """

    name: str
    memory_bytes: int
    runtime_bytes: int
    holes: float
    widths: tuple[int, ...]
    products: tuple[float, ...]
    adapters: tuple[float, ...]
    attention: float
    causal_half: bool
    memory: float
    dispatch: float
    runs_ahead: bool
    inside: Wire
    between: Wire
    trees: bool

    def at_width(self, rates: tuple[float, ...], width: int) -> float:
        """A rate at a width: interpolated by logarithm between the known ones, beyond them the nearest."""
        if width <= self.widths[0] or len(rates) == 1:
            return rates[0]
        for k in range(1, len(rates)):
            if width <= self.widths[k]:
                low, high = self.widths[k - 1], self.widths[k]
                part = math.log(width / low) / math.log(high / low)
                return rates[k - 1] * (rates[k] / rates[k - 1]) ** part
        return rates[-1]


class Gpu(NamedTuple):
    """A GPU as its data sheet describes it.

    Attributes:
        device: name as CUDA gives it; its dense bf16 peak is in `monitor/throughput.py`.
        memory: bytes of its memory.
        hbm: bytes/s of its memory.
        links: bytes/s to the other GPUs of its host, in each direction.
        nvlink: whether these are NVLink or the like, else PCI Express.
        source: where the numbers are from.
    """

    device: str
    memory: float
    hbm: float
    links: float
    nvlink: bool
    source: str


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 80e9, 2039e9, 300e9, True, "NVIDIA A100 data sheet, 80GB SXM"),
    "a100-40gb": Gpu("NVIDIA A100-SXM4-40GB", 40e9, 1555e9, 300e9, True, "NVIDIA A100 data sheet, 40GB"),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 80e9, 3350e9, 450e9, True, "NVIDIA H100 data sheet, SXM"),
    "h100-pcie": Gpu("NVIDIA H100 PCIe", 80e9, 2000e9, 64e9, False, "NVIDIA H100 data sheet, PCIe Gen5 x16"),
    "h200": Gpu("NVIDIA H200", 141e9, 4800e9, 450e9, True, "NVIDIA H200 data sheet, SXM"),
    "b200": Gpu("NVIDIA B200", 180e9, 7700e9, 900e9, True, "NVIDIA DGX B200 data sheet, an eighth"),
    "l40s": Gpu("NVIDIA L40S", 48e9, 864e9, 32e9, False, "NVIDIA L40S data sheet, PCIe Gen4 x16"),
    "l4": Gpu("NVIDIA L4", 24e9, 300e9, 32e9, False, "NVIDIA L4 data sheet, PCIe Gen4 x16"),
    "mi300x": Gpu("AMD Instinct MI300X", 192e9, 5300e9, 448e9, True, "AMD Instinct MI300X data sheet"),
}
"""Names that `--gpu` takes."""

ACHIEVED = {
    "products": 0.60, "attention": 0.25, "adapters": 0.05, "memory": 0.75, "inside": 0.75, "between": 0.85,
}  # fmt: skip
"""Shares of the data sheet's peaks that estimates count with. Assumed, not measured: no GPU was at hand."""

GPU_RUNTIME = 3 * 1024**3
"""Context, libraries, NCCL's buffers and what the allocator cannot use. Assumed, not measured."""

LAUNCH = 6 * US
"""Seconds in which Python starts one kernel through torch and autograd. Assumed, not measured."""

NVLINK_STEP, PCIE_STEP, NETWORK_STEP = 3.4 * US, 5.7 * US, 9.6 * US
"""Latency of a ring's step in NCCL's own model (src/graph/tuning.cc, hardware latencies, Ring, Simple)."""

DEFAULT_LINK = "400Gb"


def gpu_machine(name: str, link: str = DEFAULT_LINK) -> Machine:
    """A process with one GPU of a host whose network is `link`.

    Raises:
        UserError: for a GPU that is not in the table, or a link that is no rate.
    """
    if name not in GPUS:
        raise UserError(Mistake("--gpu", name, "is not in the table", f"choose one of {', '.join(GPUS)}"))
    gpu = GPUS[name]
    peak = device_peak_flops(gpu.device)
    assert peak is not None, f"{gpu.device} has no peak in monitor.throughput"
    step = NVLINK_STEP if gpu.nvlink else PCIE_STEP
    return Machine(
        name=gpu.device,
        memory_bytes=int(gpu.memory),
        runtime_bytes=GPU_RUNTIME,
        holes=HOLES["cuda"],
        widths=(1,),
        products=(ACHIEVED["products"] * peak,),
        adapters=(ACHIEVED["adapters"] * peak,),
        attention=ACHIEVED["attention"] * peak,
        causal_half=True,
        memory=ACHIEVED["memory"] * gpu.hbm,
        dispatch=LAUNCH,
        runs_ahead=True,
        inside=Wire(ACHIEVED["inside"] * gpu.links, step, hidden=1.0),
        between=Wire(ACHIEVED["between"] * link_rate(link), NETWORK_STEP, hidden=1.0),
        trees=True,
    )


def link_rate(text: str) -> float:
    """Bytes/s of a host's network: `400Gb`, `8x400Gb` (eight cards), `100Mb`, bits per second.

    Raises:
        UserError: for anything else.
    """
    found = re.fullmatch(r"(?:(\d+)x)?(\d+(?:\.\d+)?)([MG])b(?:it)?", text)
    if not found or not float(found[2]):
        fix = "write bits per second of one host, e.g. 400Gb, 8x400Gb or 100Mb"
        raise UserError(Mistake("--link", text, "is no rate of a network", fix))
    return int(found[1] or 1) * float(found[2]) * {"M": 1e6, "G": 1e9}[found[3]] / 8
