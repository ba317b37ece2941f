"""Layers in memory under ZeRO-3 on a slow card, on which nothing is finished before the host waits for it.

For the host a layer is gone once its kernels are queued: so counts `gathered layers` of `budgets.yaml`.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.pretend.runs import some_data, train
from tests.pretend.test_budgets import BUDGETS, DEPTHS, write_backbones

WAYS = {
    "kept": [],
    "recomputed": ["backbone.activation_checkpointing=true"],
    "eight bits": ["zero.quantized_weights=true"],
    "offloaded": ["zero.profile=zero3_offload"],
    "two packs": ["train.micro_batch_size=4"],
}


class LayersInUse:
    """The most layers that hold memory at once, looked at after each gather of a layer.

    Attributes:
        most: weights that are whole, and freed ones that the card may still use, in layers; by pass.
    """

    def __init__(self) -> None:
        self.most = {"forward": 0.0, "backward": 0.0}
        self._weights: list[nn.Parameter] = []
        self._freed: list[Any] = []

    def watch(self, root: nn.Module) -> None:
        """Counts the layers of this backbone from now on, but not what always stays whole."""
        layers = list(root.get_submodule("layers").children())
        self._weights = [p for layer in layers for p in layer.parameters() if not p.ds_persist]
        self._of_layer = sum(p.ds_numel for p in self._weights) / len(layers)

    def note_freed(self, param: nn.Parameter, freed: list[Any]) -> None:
        if any(param is one for one in self._weights):
            self._freed += freed

    def look(self, *, forward: bool) -> None:
        if not self._weights:
            return
        self._freed = [one for one in self._freed if one.in_use]
        freed = sum(one.size for one in self._freed) / self._weights[0].element_size()
        whole = sum(p.ds_numel for p in self._weights if p.ds_status.name != "NOT_AVAILABLE")
        computed_again = torch._C._current_graph_task_id() != -1
        name = "forward" if forward and not computed_again else "backward"
        self.most[name] = max(self.most[name], (whole + freed) / self._of_layer)


def train_on_slow_card(folder: Path, *, limited: bool) -> dict[str, dict[str, float]]:
    from deepspeed.runtime.zero import partition_parameters
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    from lingo_ds.evaluation import evaluate
    from lingo_ds.models.backbone import zero
    from lingo_ds.models.backbone.backbone import Backbone
    from tests.pretend import device

    device.CARD.slow, found = True, {}
    fetch, free = PartitionedParameterCoordinator.fetch_sub_module, partition_parameters.free_param
    make, own_logits = Backbone.__init__, evaluate.own_logits

    def make_watched(self: Backbone, *args: Any, **how: Any) -> None:
        make(self, *args, **how)
        seen.watch(self.module)

    def fetch_watched(self: Any, module: nn.Module, forward: bool) -> None:
        fetch(self, module, forward)
        seen.look(forward=forward)

    def free_watched(param: nn.Parameter) -> None:
        before = len(device.freed)
        free(param)
        seen.note_freed(param, device.freed[before:])

    def logits_that_are_read(*args: Any) -> Any:
        logits = own_logits(*args)
        torch.cuda.synchronize()  # as reading them makes the host wait
        return logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "own_logits", logits_that_are_read)
        patch.setattr(PartitionedParameterCoordinator, "fetch_sub_module", fetch_watched)
        patch.setattr(partition_parameters, "free_param", free_watched)
        patch.setattr(Backbone, "__init__", make_watched)
        if not limited:
            patch.setattr(zero, "limit_run_ahead", lambda *_: None)
        for way, settings in WAYS.items():
            seen = LayersInUse()
            sharded = [f"backbone.path={folder / 'six layers'}", "zero.stage=3", *settings]
            train(folder / "data", folder / f"{way} {limited}", *sharded)
            found[way] = seen.most
    return found


def train_both(folder: Path) -> dict[bool, Any]:
    write_backbones(folder)
    return {limited: train_on_slow_card(folder, limited=limited) for limited in (True, False)}


@pytest.fixture(scope="module")
def seen(cards, tmp_path_factory) -> dict[bool, Any]:
    folder = tmp_path_factory.mktemp("run-ahead")
    some_data(folder)
    (value,) = cards.call(train_both, folder)
    return value


@pytest.mark.parametrize("during", ["forward", "backward"])
@pytest.mark.parametrize("way", WAYS)
def test_three_layers_hold_memory_at_once(seen, way, during):
    assert 2 <= seen[True][way][during] <= BUDGETS["layers in memory"]


@pytest.mark.parametrize("during", ["forward", "backward"])
@pytest.mark.parametrize("way", WAYS)
def test_without_the_limit_all_of_them_would(seen, way, during):
    assert seen[False][way][during] >= DEPTHS["six layers"]
