"""Hidden states between a model's layers, kept while a forward passes through them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lingo_ds.models.backbone.skeleton import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def keeping_states(module: "PreTrainedModel", layer: int) -> Iterator[list[Tensor]]:
    """Inside, each forward adds the hidden states that a layer reads to the list that is given.

    A hook takes them, and not transformers' `output_hidden_states`, which would keep those of all layers.

    Args:
        module: the model.
        layer: number of the layer, from 0; the number of layers keeps nothing: behind the last one is the
            norm whose output every forward returns.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    layers = list(decoder_layers(module).values())
    if layer == len(layers):
        yield kept
        return
    handle = layers[layer].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield kept
    finally:
        handle.remove()
