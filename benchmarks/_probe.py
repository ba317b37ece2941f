"""What a process of this machine does in a second, alone or beside others: rates that `plan_accuracy` needs.

`python benchmarks/_probe.py PROCESSES FILE`: so many processes, one thread each, time the same small kernels
at the same time, and FILE gets the slowest one's rates.
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import multiprocessing

from lingo_ds.models.backbone.gathers import GatheredInPlace
from lingo_ds.models.backbone.pack_places import find_places
from lingo_ds.models.backbone.packed_attention import PackedAttention, choose_kernel

TOKENS = 1600
"""Of a product: about a pack of the runs that are planned."""

WIDTHS = (256, 512, 1024)
"""Of the residual stream at which products are timed; the feed-forward part is 2.75 times as wide."""

POOL = 1 << 28
"""Bytes that elementwise kernels go through, as activations do: more than any cache holds."""

SECONDS = 0.2
"""That each kernel is repeated for."""


def seconds_of(kernel: Callable[[], object], *, times_called: int | None = None) -> float:
    """Median time of a call, after all processes have begun together; collectives say how often."""
    if dist.is_initialized():
        dist.barrier()
    kernel()
    times, start = [], time.perf_counter()
    while len(times) < (times_called or 1) or (
        times_called is None and time.perf_counter() - start < SECONDS
    ):
        before = time.perf_counter()
        kernel()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def products(width: int) -> float:
    """FLOP/s of frozen maps, forward and gradient, as a layer has them: four square ones, three wide ones."""
    linear = torch.ops.mkldnn._linear_pointwise
    wide = 11 * width // 4
    total = 0.0
    for d_out, d_in, count in ((width, width, 4), (wide, width, 2), (width, wide, 1)):
        weight = torch.randn(d_out, d_in)
        for matrix in (weight, weight.t()):
            x = torch.randn(TOKENS, matrix.shape[1])
            total += count * seconds_of(lambda x=x, m=matrix: linear(x, m, None, "none", [], ""))
    return 4 * TOKENS * (4 * width * width + 3 * width * wide) / total


def adapters(width: int) -> float:
    """FLOP/s of a rank-8 adapter on a square map, forward and backward."""
    x = torch.randn(TOKENS, width, requires_grad=True)
    q, p = (torch.randn(8, width, requires_grad=True) for _ in range(2))

    def kernel() -> None:
        torch.zeros(TOKENS, width).addmm(F.linear(x, q), p).backward(x.detach())

    base = seconds_of(lambda: torch.zeros(TOKENS, width))
    return 12 * TOKENS * 8 * width / max(seconds_of(kernel) - base, 1e-6)


def attention() -> float:
    """FLOP/s of attention in a pack of 8 examples of 200 tokens, forward and backward, all pairs counted."""
    q, k, v = (torch.randn(1, 8, 1600, 64, requires_grad=True) for _ in range(3))
    kernel = choose_kernel(q.dtype, q.shape[-1], q.device)
    pack = PackedAttention(find_places(0, [200] * 8, kernel=kernel, pooled=None))
    grad = torch.randn(1, 1600, 8, 64)

    def forward_and_backward() -> None:
        pack(q, k, v, scale=0.125, window=None, causal=True).backward(grad)

    return 14 * 8 * 8 * 200 * 200 * 64 / seconds_of(forward_and_backward)


def traffic(width: int) -> float:
    """Bytes/s of elementwise products that read what was just written, and write what was not for long."""
    pool = [torch.ones(TOKENS, width) for _ in range(POOL // (4 * TOKENS * width))]
    places = itertools.cycle(range(len(pool)))

    def kernel() -> None:
        k = next(places)
        torch.mul(pool[k - 1], pool[k - 2], out=pool[k])

    return 3 * pool[0].nbytes / seconds_of(kernel)


def dispatch() -> float:
    """Seconds of an operation on nearly nothing, forward and backward."""
    x = torch.randn(8, requires_grad=True)

    def kernel() -> None:
        y = x
        for _ in range(50):
            y = y * x
        y.backward(x.detach())

    return seconds_of(kernel) / 100


def collectives(world: int) -> dict[str, list[float]]:
    """(latency in seconds, bytes/s that each process sends) of all-gathers and all-reduces."""
    found = {}
    for name, ring in (("all_gather", 1), ("all_reduce", 2)):
        seconds = []
        for size in (4096, 16 << 20):
            whole = torch.zeros(size // 4)
            part = torch.zeros(size // 4 // world)
            call = {
                "all_gather": lambda whole=whole, part=part: GatheredInPlace(whole, part, None).wait(),
                "all_reduce": lambda whole=whole: dist.all_reduce(whole),
            }[name]
            seconds.append(seconds_of(call, times_called=12))
        sent = ring * (world - 1) / world * (16 << 20)
        found[name] = [seconds[0], sent / max(seconds[1] - seconds[0], 1e-9)]
    return found


def measure(world: int) -> dict[str, Any]:
    """The slowest process's rates, once."""
    rates = {
        "products": [products(width) for width in WIDTHS],
        "adapters": [adapters(width) for width in WIDTHS],
        "attention": [attention()],
        "memory": [statistics.median(traffic(11 * width // 4) for width in WIDTHS)],
        "dispatch": [1 / dispatch()],
    }
    if world > 1:
        for name, values in rates.items():
            slowest = torch.tensor(values, dtype=torch.float64)
            dist.all_reduce(slowest, op=dist.ReduceOp.MIN)
            rates[name] = slowest.tolist()
        rates |= collectives(world)
    single = {name: values[0] for name, values in rates.items() if len(values) == 1}
    return rates | single | {"dispatch": 1 / single["dispatch"]}


def middle(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of several rounds, number by number."""
    return {
        name: [statistics.median(each) for each in zip(*(one[name] for one in rounds), strict=True)]
        if isinstance(value, list)
        else statistics.median(one[name] for one in rounds)
        for name, value in rounds[0].items()
    }


def probe(rank: int, world: int, store: str, file: str) -> None:
    """Three rounds on one process; the first writes what was found."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    rates = middle([measure(world) for _ in range(3)])
    if rank == 0:
        Path(file).write_text(json.dumps({"processes": world, "widths": WIDTHS, **rates}))
    if world > 1:
        dist.destroy_process_group()


def main() -> None:
    world, file = int(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(probe, args=(world, f"{folder}/store", file), nprocs=world)


if __name__ == "__main__":
    main()
