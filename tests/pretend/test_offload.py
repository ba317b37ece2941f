"""Weights in the host's memory: one page-locked block, exactly as large as a process's ranges."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pretend.runs import RECIPE, settings, train
from tests.unit.running import command

OFFLOADED = ["zero.stage=3", "zero.profile=zero3_offload"]


def train_offloaded(folder: Path) -> dict[str, Any]:
    from lingo_ds.models.backbone.backbone import Backbone
    from tests.pretend.device import RUNTIME

    make, seen = Backbone.__init__, {}

    def look(self: Backbone, *args: Any, **how: Any) -> None:
        make(self, *args, **how)
        ranges = [param.ds_tensor for param in self.module.parameters()]
        seen["blocks"] = {one.untyped_storage().data_ptr() for one in ranges}
        seen["bytes"] = sum(one.nbytes for one in ranges)
        seen["locked"] = dict(RUNTIME.locked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "__init__", look)
        train(folder / "data", folder / "offloaded", *OFFLOADED)
    return seen


def hold_and_drop(entries: int) -> dict[str, Any]:
    from lingo_ds.models.ops.host_memory import page_locked
    from tests.pretend.device import RUNTIME

    torch.zeros(1).pin_memory()  # before that torch takes no memory for pinned
    block = page_locked(entries, torch.bfloat16)
    block.fill_(1)
    part = block[entries // 2 :]
    seen = {"pinned": part.is_pinned(), "locked": list(RUNTIME.locked.values())}
    del block
    gc.collect()
    seen["while a part is left"] = [part.sum().item(), len(RUNTIME.locked)]
    del part
    gc.collect()
    seen["afterwards"] = len(RUNTIME.locked)
    return seen


def train_where_nothing_is_locked(folder: Path) -> tuple[int, str]:
    from tests.pretend.device import RUNTIME

    RUNTIME.refuses = True
    return command("train", RECIPE, folder / "refused", *settings(folder / "data", *OFFLOADED))


def test_all_ranges_lie_in_one_locked_block_of_their_size(cards, folder):
    (seen,) = cards.call(train_offloaded, folder)
    assert seen["blocks"] == set(seen["locked"])
    assert list(seen["locked"].values()) == [seen["bytes"]]


def test_a_block_is_locked_as_long_as_a_part_of_it_is_used(cards):
    entries = 3 * 2**20 // 2
    (seen,) = cards.call(hold_and_drop, entries)
    assert seen["pinned"] and seen["locked"] == [2 * entries]
    assert seen["while a part is left"] == [entries / 2, 1] and seen["afterwards"] == 0


def test_a_host_that_locks_no_more_is_the_users_to_correct(cards, folder):
    ((status, shown),) = cards.call(train_where_nothing_is_locked, folder)
    assert status == 2 and "offload_param.pin_memory" in shown
    assert "cannot be page-locked on this host (CUDA error 2)" in shown
