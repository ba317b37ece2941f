"""The memory of a card: how much of it a plan counts on, and what is said where it is full."""

import contextlib
import io
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lingo_ds.commands.cli import main
from lingo_ds.utils.units import GIB
from tests.pretend.runs import RECIPE, predict, settings, train
from tests.unit.running import at_step, command


def planned(taken: int, reserved: int) -> int:
    from lingo_ds.distributed.process_group import detect
    from lingo_ds.planning.plan_inputs import gather_processes
    from tests.pretend.device import CARD

    CARD.memory, CARD.taken, CARD.reserved = 80 * GIB, taken, reserved
    return gather_processes(detect()).memory_bytes


def test_the_plan_starts_from_what_others_left_free(cards):
    assert cards.call(planned, 30 * GIB, 0) == [50 * GIB]


def test_what_this_process_holds_is_its_own(cards):
    assert cards.call(planned, 30 * GIB, 20 * GIB) == [50 * GIB]


def test_a_few_bytes_make_no_other_plan(cards):
    assert cards.call(planned, 30 * GIB + 1, 0) == cards.call(planned, 30 * GIB + 2**27, 0)


def train_until_full(folder: Path, full: int) -> tuple[int, str]:
    """Trains; one process asks its card for more than that has when a step begins."""
    rank = int(os.environ.get("RANK", "0"))

    def fill() -> None:
        if rank == full:
            torch.empty(2**40, dtype=torch.uint8, device=f"cuda:{rank}")

    with at_step(3, fill):
        out, given = folder / f"full {full}", settings(folder / "data")
        if rank == full:
            return command("train", RECIPE, out, *given)
        return main(["train", "--config", str(RECIPE), f"output_dir={out}", *given]), ""  # stderr is not kept


def predict_until_full(folder: Path) -> tuple[int, str]:
    from lingo_ds.data.batches import Batch
    from lingo_ds.data.packing import Pack

    def fill(*_: Any) -> None:
        torch.empty(2**40, dtype=torch.uint8, device="cuda")

    train(folder / "data", folder / "run")
    source, target = folder / "data" / "test.csv", folder / "answers.csv"
    words = ["--adapter", folder / "run" / "adapter", "--input", source, "--output", target]
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(shown):
        for kind in (Batch, Pack):
            patch.setattr(kind, "logits", fill)
        status = main(["predict", *map(str, words), "batch_tokens=640"])
        evaluated, more = command("evaluate", folder / "run" / "config.yaml", folder / "run")
    assert evaluated == status
    return status, shown.getvalue() + more


def test_a_full_card_ends_training_with_the_setting_to_lower(cards, folder):
    ((status, shown),) = cards.call(train_until_full, folder, 0)
    assert status == 2 and "Traceback" not in shown
    assert "error: train.micro_batch_tokens: '" in shown
    assert "out of memory in training: 1024 GiB more did not fit, 131.316 GiB of 131.316 GiB were" in shown
    assert "backbone.activation_checkpointing=true" in shown


def test_a_full_card_ends_prediction_and_evaluation(cards, folder):
    ((status, shown),) = cards.call(predict_until_full, folder)
    assert status == 2
    assert "error: batch_tokens: '640': out of memory in prediction: 1024 GiB" in shown
    assert "out of memory in evaluation: 1024 GiB" in shown


@pytest.mark.parametrize("full", [0, 1])
def test_the_others_end_too_with_the_same_words(cards, folder, full):
    began = time.monotonic()
    with pytest.raises(AssertionError) as caught:
        cards.call(train_until_full, folder, full, processes=2)
    assert f"process {1 - full}: status 2" in str(caught.value)
    assert time.monotonic() - began < 300  # train.timeout would be 900
    if full == 0:  # which keeps the store, and speaks last: the same words are said once on a host
        assert "error: train.micro_batch_tokens: '" in str(caught.value)


def predict_in_many_forwards(folder: Path) -> tuple[int, int]:
    """Forwards of a prediction, and the most of them whose pinned memory was in use when one was made."""
    from lingo_ds.data.batches import transfer

    train(folder / "data", folder / "few")
    pinned, blocks, alive = transfer.pinned, [], []

    def noted(forward: Any) -> Any:
        ready = pinned(forward)
        blocks.append(StorageWeakRef(ready.rows.untyped_storage()))
        alive.append(sum(not block.expired() for block in blocks))
        return ready

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "pinned", noted)
        predict(folder / "few" / "adapter", folder / "data", folder / "few.csv", "batch_tokens=64")
    return len(blocks), max(alive)


def test_forwards_that_were_computed_hold_no_pinned_memory(cards, folder):
    ((forwards, alive),) = cards.call(predict_in_many_forwards, folder)
    assert forwards > 5
    assert alive <= 3  # one is computed, the next one waits, and one is made
