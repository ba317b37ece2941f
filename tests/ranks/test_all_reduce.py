"""The sum over processes is right and has the same bits everywhere; hosts are told from local ranks."""

import pytest
import torch

from lingo_ds.distributed import process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.distributed.traffic import hosts_of
from lingo_ds.utils.errors import UserError
from tests.ranks.spawn import run_ranks

SIZES = (1, 2, 7, 10_001)


def summed(rank: int, world_size: int, local: int) -> list[torch.Tensor]:
    process_group.start(DistEnv(rank, rank % local, world_size, local, torch.device("cpu")))
    own = [torch.randn(size, generator=torch.Generator().manual_seed(rank)) for size in SIZES]
    return [process_group.all_reduce_(one, what="bank") for one in own]


def test_a_sum_is_right_and_has_the_same_bits_everywhere():
    results = run_ranks(summed, 4, 2)
    for place, size in enumerate(SIZES):
        parts = [torch.randn(size, generator=torch.Generator().manual_seed(rank)) for rank in range(4)]
        for result in results:
            torch.testing.assert_close(result[place], torch.stack(parts).sum(0))
            assert torch.equal(result[place], results[0][place])


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
