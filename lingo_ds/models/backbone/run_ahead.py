"""Keeps the host from running far ahead of a GPU under ZeRO-3, since every layer it has queued holds memory.

The host is done with a layer once its kernels are queued, and DeepSpeed then gathers the next one. But the
memory of a released layer can be used again only when the GPU has passed it. DeepSpeed limits its gathers by
one another, not by what has been computed: where a layer computes for longer than Python needs to queue it,
tens of layers are in memory at once (28 of a 7B, by arithmetic). So the host waits, before it gathers, for
the layer two before, as the rate limiter of torch's FSDP does. The GPU has the layer between to work on.
"""

from collections import deque
from typing import Any, Protocol

import torch
from torch import nn

LAYERS_AHEAD = 1
"""Layers before the one that the host queues which the GPU need not have computed yet."""


class Coordinator(Protocol):
    """The part of DeepSpeed's coordinator of partitioned weights that gathers and releases."""

    fetch_sub_module: Any
    release_sub_module: Any


class RunAheadLimit:
    """Waits of the host for the layers that were queued before, in whatever order they come."""

    def __init__(self) -> None:
        self._queued: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Returns once the GPU has passed all layers but the last; to be called before a gather."""
        while len(self._queued) > LAYERS_AHEAD:
            self._queued.popleft().synchronize()

    def note(self) -> None:
        """Marks the place in the GPU's queue at which a layer is released."""
        passed = torch.cuda.Event()
        passed.record()
        self._queued.append(passed)


def limit_run_ahead(coordinator: Coordinator, layer_classes: tuple[type[nn.Module], ...]) -> None:
    """Makes the host wait for the GPU in all forward and backward passes.

    It replaces two methods of this one coordinator, which all gathers and releases pass.

    Args:
        coordinator: DeepSpeed's, of one backbone.
        layer_classes: classes of the decoder layers, each of which is gathered as a whole.
    """
    limit = RunAheadLimit()
    fetch, release = coordinator.fetch_sub_module, coordinator.release_sub_module

    def fetch_in_time(module: nn.Module, forward: bool) -> None:
        limit.wait()  # for the embedding, too: the first layers are fetched ahead with it
        fetch(module, forward)

    def release_and_note(module: nn.Module, forward: bool = False) -> None:
        release(module, forward)
        # A layer that is computed again inside of its backward pass stays gathered until the end of that.
        computed_again = forward and torch._C._current_graph_task_id() != -1
        if isinstance(module, layer_classes) and not computed_again:
            limit.note()

    coordinator.fetch_sub_module, coordinator.release_sub_module = fetch_in_time, release_and_note
