"""Sizes of every frozen weight: of each layer, of the embeddings and of the rest."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Weight(NamedTuple):
    """A frozen weight: its entries, and whether it is a linear map inside a decoder layer."""

    entries: int
    is_map: bool = False


@dataclass(frozen=True)
class Weights:
    """Sizes of a frozen model's weights, each of which ZeRO partitions, and therefore pads, by itself.

    Attributes:
        runs: (number of layers, weights of one such layer), from the first decoder layer to the last.
        embeddings: all embeddings outside of the decoder layers; no backward pass needs them.
        others: all other weights outside of the decoder layers.
    """

    runs: tuple[tuple[int, tuple[Weight, ...]], ...]
    embeddings: tuple[Weight, ...]
    others: tuple[Weight, ...]

    @property
    def layers(self) -> tuple[tuple[Weight, ...], ...]:
        """Weights of each layer."""
        return tuple(weights for count, weights in self.runs for _ in range(count))

    @property
    def every(self) -> tuple[Weight, ...]:
        """All weights."""
        return (*self.embeddings, *flatten(self.layers), *self.others)


def flatten(layers: Iterable[Iterable[Weight]]) -> tuple[Weight, ...]:
    """Weights of several layers, one after the other."""
    return tuple(weight for layer in layers for weight in layer)
