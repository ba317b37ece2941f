"""Every way to train on a real card, by the real command: the CPU's losses to 2 %, and what follows."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from tests.gpu.checks import train_twice
from tests.pretend.runs import OWN, STEPS, WAYS, train, use
from tests.unit.running import at_step, ctrl_c

pytestmark = pytest.mark.gpu
CARD_WAYS = {
    **WAYS,
    "liger": ["backbone.fused_kernels=liger"],
    "nf4": ["backbone.quantization=nf4"],
    "int8": ["backbone.quantization=int8"],
}
NEEDS = {"liger": "liger_kernel", "nf4": "bitsandbytes", "int8": "bitsandbytes"}
WITHIN = {"nf4": 0.1, "int8": 0.05}
"""How near losses must come where weights are rounded; else 2 %."""


@pytest.fixture(scope="module")
def on_cpu(folder) -> dict[str, list[float]]:
    losses = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        for way in OWN:
            dtype = [] if way == "fp16" else ["backbone.dtype=bf16"]
            losses[way] = train(folder / "data", folder / f"cpu {way}", *WAYS[way], *dtype)["losses"]
    return losses


@pytest.fixture(scope="module")
def plain(folder) -> dict[str, Any]:
    return train(folder / "data", folder / "plain")


@pytest.mark.parametrize("way", CARD_WAYS)
def test_losses_are_the_cpus(folder, on_cpu, way):
    if find_spec(NEEDS.get(way, "torch")) is None:
        pytest.skip(f"{NEEDS[way]} is not installed")
    ours = train(folder / "data", folder / f"card {way}", *CARD_WAYS[way])
    theirs = on_cpu[way if way in OWN else "plain"]
    assert len(ours["losses"]) == STEPS
    assert ours["losses"] == pytest.approx(theirs, rel=WITHIN.get(way, 0.02))
    if way != "offloaded":
        assert all(where.startswith("cuda:0") for where in ours["weights"])


def test_a_resumed_run_goes_on_as_if_it_had_not_ended(folder, plain):
    with at_step(4, ctrl_c):
        train(folder / "data", folder / "resumed", "checkpoint.every=3")
    resumed = train(folder / "data", folder / "resumed", "checkpoint.every=3")
    assert resumed["losses"] == pytest.approx(plain["losses"][4:], rel=1e-3)


def test_deterministic_runs_are_the_same_to_the_bit(folder):
    first, second = train_twice(folder / "data", folder / "twice", "train.deterministic=true")
    assert first == second


def test_the_other_verbs_answer_as_the_cpu_does(folder, plain):
    ours = use(folder / "plain", folder / "data", folder / "uses")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        theirs = use(folder / "plain", folder / "data", folder / "cpu uses", "backbone.dtype=bf16")
    torch.testing.assert_close(ours["probabilities"], theirs["probabilities"], rtol=0.02, atol=0.005)
    assert ours["merged"].keys() == theirs["merged"].keys()
