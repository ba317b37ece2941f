"""Every way to train, six steps by the real command on the pretend card: the CPU's losses to 2 %."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pretend.runs import OWN, STEPS, WAYS, train, use
from tests.unit.running import at_step, ctrl_c

WEIGHTS = {
    "plain": {"cuda:0 bfloat16"},
    "sharded": {"cuda:0 bfloat16 part"},
    "eight bits": {"cuda:0 bfloat16 part", "cuda:0 uint8 part"},
    "offloaded": {"cpu bfloat16 pinned part"},
    "fp16": {"cuda:0 float16"},
}
"""Where the frozen weights are, and in which type."""


def train_every_way(folder: Path) -> dict[str, Any]:
    from tests.pretend import flash_kernel

    seen = {}
    for way, settings in WAYS.items():
        flash_kernel.calls.clear()
        flash_kernel.backward_repeats.clear()
        seen[way] = train(folder / "data", folder / way, *settings)
        seen[way]["flash"] = list(flash_kernel.calls)
        seen[way]["repeats"] = set(flash_kernel.backward_repeats)
        seen[way]["whole sums"] = not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    with at_step(4, ctrl_c):
        train(folder / "data", folder / "resumed", "checkpoint.every=3")
    seen["resumed"] = train(folder / "data", folder / "resumed", "checkpoint.every=3")
    seen["uses"] = use(folder / "plain", folder / "data", folder / "uses")
    return seen


@pytest.fixture(scope="module")
def seen(cards, folder) -> dict[str, Any]:
    (value,) = cards.call(train_every_way, folder, timeout=400)
    return value


@pytest.fixture(scope="module")
def on_cpu(folder, seen) -> dict[str, Any]:
    """The same on the CPU, and the verbs that use an adapter on the one from the card."""
    out = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
        for way in OWN:
            dtype = [] if way == "fp16" else ["backbone.dtype=bf16"]
            out[way] = train(folder / "data", folder / f"cpu {way}", *WAYS[way], *dtype)
        out["uses"] = use(folder / "plain", folder / "data", folder / "cpu uses", "backbone.dtype=bf16")
    return out


def train_from_disk(folder: Path) -> dict[str, Any]:
    from lingo_ds.models.backbone import zero
    from lingo_ds.utils.errors import UserError

    try:
        zero.require_nvme(torch.device("cuda", 0))
    except UserError as error:
        return {"refused": str(error)}
    nvme = ["zero.stage=3", "zero.profile=zero3_nvme", f"zero.nvme_path={folder / 'disk'}"]
    return train(folder / "data", folder / "from disk", *nvme)


@pytest.mark.slow  # DeepSpeed compiles its reader first
def test_losses_are_the_cpus_with_weights_on_nvme(cards, folder, on_cpu):
    (seen,) = cards.call(train_from_disk, folder, timeout=500)
    if "refused" in seen:
        pytest.skip(seen["refused"])
    assert seen["losses"] == pytest.approx(on_cpu["plain"]["losses"], rel=0.02)


@pytest.mark.parametrize("way", WAYS)
def test_losses_are_the_cpus(seen, on_cpu, way):
    ours = seen[way]["losses"]
    theirs = on_cpu[way if way in OWN else "plain"]["losses"]
    assert len(ours) == len(theirs) == STEPS
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("way", WEIGHTS)
def test_frozen_weights_are_where_they_should_be(seen, way):
    assert seen[way]["weights"] == WEIGHTS[way]


@pytest.mark.parametrize("way", WAYS)
def test_packs_are_computed_by_flash_attention(seen, way):
    dtype = "float16" if way == "fp16" else "bfloat16"
    assert set(seen[way]["flash"]) == (set() if way == "padded" else {f"{dtype} 16"})


@pytest.mark.parametrize("way", ["plain", "deterministic"])
def test_gradients_are_added_in_a_fixed_order_on_request_alone(seen, way):
    assert seen[way]["repeats"] == {way == "deterministic"}


def test_a_fixed_order_changes_nothing_else(seen):
    assert seen["deterministic"]["losses"] == seen["plain"]["losses"]  # the pretend kernel has one order


def test_sums_of_products_are_whole_before_they_are_rounded(seen):
    assert seen["plain"]["whole sums"]


def test_layers_are_recomputed_in_the_backward_pass(seen):
    assert len(seen["recomputed"]["flash"]) > len(seen["plain"]["flash"])


def test_a_resumed_run_goes_on_as_if_it_had_not_ended(seen):
    assert seen["resumed"]["losses"] == seen["plain"]["losses"][4:]


def test_the_other_verbs_answer_as_the_cpu_does(seen, on_cpu):
    ours, theirs = seen["uses"], on_cpu["uses"]
    torch.testing.assert_close(ours["probabilities"], theirs["probabilities"], rtol=0.02, atol=0.005)
    assert ours["merged"].keys() == theirs["merged"].keys()
    for name, weight in theirs["merged"].items():
        torch.testing.assert_close(ours["merged"][name], weight, rtol=0.01, atol=1e-4, msg=name)
