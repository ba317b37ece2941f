"""Entries of every frozen weight, by layer, embedding and the rest."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Weight(NamedTuple):
    """Entries of a frozen weight, and whether it is a linear map inside a decoder layer."""

    entries: int
    is_map: bool = False


@dataclass(frozen=True)
class Weights:
    """Sizes of a frozen model's weights: ZeRO splits each one by itself, so that each is padded by itself.

    Attributes:
        runs: (layers, every weight of one such layer), from the first decoder layer to the last.
        embeddings: every embedding outside of the decoder layers; no backward pass needs them.
        others: every other weight there.
    """

    runs: tuple[tuple[int, tuple[Weight, ...]], ...]
    embeddings: tuple[Weight, ...]
    others: tuple[Weight, ...]

    @property
    def layers(self) -> tuple[tuple[Weight, ...], ...]:
        """Every weight, by layer."""
        return tuple(weights for count, weights in self.runs for _ in range(count))

    @property
    def every(self) -> tuple[Weight, ...]:
        """Every weight."""
        return (*self.embeddings, *flatten(self.layers), *self.others)


def flatten(layers: Iterable[Iterable[Weight]]) -> tuple[Weight, ...]:
    """The weights of several layers, one after the other."""
    return tuple(weight for layer in layers for weight in layer)
