"""The sum over hosts: right, the same bits everywhere, and less of it on the cable."""

import pytest
import torch

from lingo_ds import distributed
from lingo_ds.by_host import hosts_of
from lingo_ds.counter import counter
from lingo_ds.distributed import DistEnv
from lingo_ds.errors import UserError
from lingo_ds.traffic import Link
from tests.ranks.spawn import run_ranks

SIZES = (1, 2, 7, 10_001)


def summed(rank: int, world_size: int, local: int) -> dict:
    """Sums of tensors of several sizes, and bytes of the last one that went between hosts."""
    distributed.start(DistEnv(rank, rank % local, world_size, local, torch.device("cpu")))
    sums = []
    for size in SIZES:
        own = torch.randn(size, generator=torch.Generator().manual_seed(rank))
        counter.take()
        sums.append(distributed.all_reduce_(own, what="bank"))
    between = sum(tally.sent for kind, tally in counter.take().items() if kind.link is Link.BETWEEN)
    return {"sums": sums, "by_host": distributed.sums_by_host(), "between": between}


@pytest.mark.parametrize(("processes", "local", "by_host"), [(4, 2, True), (4, 4, False), (2, 1, False)])
def test_a_sum_is_right_and_has_the_same_bits_everywhere(processes, local, by_host):
    results = run_ranks(summed, processes, local)
    for place, size in enumerate(SIZES):
        parts = [
            torch.randn(size, generator=torch.Generator().manual_seed(rank)) for rank in range(processes)
        ]
        for result in results:
            torch.testing.assert_close(result["sums"][place], torch.stack(parts).sum(0))
            assert torch.equal(result["sums"][place], results[0]["sums"][place])
    assert all(result["by_host"] is by_host for result in results)
    if by_host:
        assert results[0]["between"] == 4 * -(-SIZES[-1] // 2)  # the half that is its own, once


@pytest.mark.parametrize(
    ("local", "hosts"),
    [([0], [0]), ([0, 1, 2], [0, 0, 0]), ([0, 1, 0, 1], [0, 0, 1, 1]), ([0, 0, 1], [0, 1, 1])],
)
def test_hosts_from_local_ranks(local, hosts):
    assert hosts_of(local) == hosts


@pytest.mark.parametrize("local", [[0, 0, 1, 1], [1, 0], [0, 2]])
def test_processes_that_were_dealt_out_over_hosts_are_refused(local):
    with pytest.raises(UserError, match="not neighbours"):
        hosts_of(local)
