"""Which examples a process sees at a step, and their batches.

Everything follows from (seed, step): resuming needs no state.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lingo_ds.data.tokenize import TokenizedSplit


class Batch(NamedTuple):
    """Padded examples of one forward.

    Attributes:
        input_ids: (n, length) token ids, padded on the right.
        lengths: (n,) real tokens.
        labels: (n,) classes.
        rows: (n,) place in the split.
        weights: (n,) 1, or 0 for a filler that keeps the number of forwards equal on all processes.
    """

    input_ids: Tensor
    lengths: Tensor
    labels: Tensor
    rows: Tensor
    weights: Tensor

    @property
    def attention_mask(self) -> Tensor | None:
        """(n, length), 1 on real tokens; None where nothing is padded."""
        width = self.input_ids.shape[1]
        if bool((self.lengths == width).all()):
            return None
        return (torch.arange(width) < self.lengths[:, None]).long()

    @property
    def real_tokens(self) -> int:
        """Tokens of examples that count."""
        return int((self.lengths * self.weights.bool()).sum())


def make_batch(split: TokenizedSplit, rows: np.ndarray, weights: np.ndarray) -> Batch:
    """Pads the examples `rows` (n,) of a split to their longest."""
    lengths = split.lengths[rows]
    input_ids = np.zeros((len(rows), int(lengths.max())), np.int64)
    for line, row in zip(input_ids, rows, strict=True):
        tokens = split.tokens(int(row))
        line[: len(tokens)] = tokens
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(lengths.astype(np.int64)),
        torch.from_numpy(split.labels[rows].astype(np.int64)),
        torch.from_numpy(rows.astype(np.int64)),
        torch.from_numpy(weights.astype(np.float32)),
    )


def epoch_order(rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """A random order of all rows, from (seed, epoch) alone."""
    return np.random.Generator(np.random.Philox(key=[seed, 2**32 + epoch])).permutation(rows)


class TrainBatches:
    """The batches of every step: each epoch holds each example once; an epoch's last batch may be smaller.

    Attributes:
        seed: with the epoch, decides the order of examples.
    """

    def __init__(
        self,
        split: TokenizedSplit,
        *,
        seed: int,
        batch: int,
        micro_batch: int,
        accumulation: int,
        rank: int,
        world: int,
    ):
        self._split, self.seed, self._batch = split, seed, batch
        self._micro, self._accumulation = micro_batch, accumulation
        self._rank, self._world = rank, world
        self._drawn: tuple[int, int] | None = None

    def rows_at(self, step: int) -> np.ndarray:
        """Rows of the global batch of `step` (1-based), the same on every process."""
        per_epoch = -(-len(self._split) // self._batch)
        epoch, place = divmod(step - 1, per_epoch)
        if self._drawn != (self.seed, epoch):
            self._drawn = self.seed, epoch
            self._order = epoch_order(len(self._split), seed=self.seed, epoch=epoch)
        return self._order[place * self._batch : (place + 1) * self._batch]

    def at(self, step: int) -> list[Batch]:
        """This process's micro-batches of `step`: as many on every process, padded with weight-0 examples."""
        rows = self.rows_at(step)
        return list(_shares(self._split, rows, self._micro, self._accumulation, self._rank, self._world))


def eval_batches(split: TokenizedSplit, *, batch: int, rank: int, world: int) -> Iterator[Batch]:
    """This process's share of a split, longest first; as many batches on every process."""
    rows = np.argsort(-split.lengths, kind="stable")
    share = -(-len(rows) // world)
    count = -(-share // batch)
    return _shares(split, rows, batch, count, rank, world)


def _shares(
    split: TokenizedSplit, rows: np.ndarray, batch: int, count: int, rank: int, world: int
) -> Iterator[Batch]:
    """`count` batches out of every `world`-th row, starting with `rank`."""
    own = rows[rank::world]
    for k in range(count):
        part = own[k * batch : (k + 1) * batch]
        weights = np.ones(max(len(part), 1))
        if not len(part):
            part, weights = rows[:1], np.zeros(1)
        yield make_batch(split, part, weights)
