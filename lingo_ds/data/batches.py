"""The examples that a process sees at a step, and their batches.

Everything follows from (seed, step), so that resuming needs no state.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from lingo_ds.data.packing import Pack, PackedModel, assign_to_ranks, make_pack, or_dummy_row
from lingo_ds.data.tokenized import TokenizedSplit
from lingo_ds.utils import transfer

Prefetched = TypeVar("Prefetched")


class PaddedModel(Protocol):
    """A model that computes padded examples."""

    def padded_logits(self, input_ids: Tensor, attention_mask: Tensor | None, lengths: Tensor, /) -> Tensor:
        """(n, outputs) logits of (n, length) token ids, of which `lengths` (n,) are real."""


class Batch(NamedTuple):
    """Padded examples of one forward.

    Attributes:
        input_ids: (n, length) token ids, padded on the right.
        attention_mask: (n, length) int64, 1 on real tokens; None where nothing is padded.
        lengths: (n,) real tokens.
        labels: (n,) int64 classes, or (n, values) float32 with NaN where unknown.
        rows: (n,) place in the split.
        weights: (n,) 1, or 0 for a dummy row that keeps the number of forwards equal on all processes.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    lengths: Tensor
    labels: Tensor
    rows: Tensor
    weights: Tensor

    @property
    def real_tokens(self) -> int:
        """Tokens of the examples of weight 1."""
        return int((self.lengths * self.weights.bool()).sum())

    @property
    def computed_tokens(self) -> int:
        """Tokens that the backbone computes, padding included."""
        return self.input_ids.numel()

    @property
    def shared_tokens(self) -> int:
        """Real tokens that are computed with others: none without packing."""
        return 0

    def prepared(self, model: PaddedModel) -> Self:
        """The batch: there is nothing more that a model must know of it."""
        return self

    def logits(self, model: PaddedModel) -> Tensor:
        """(n, outputs) logits that `model` computes."""
        return model.padded_logits(self.input_ids, self.attention_mask, self.lengths)


Forward = Batch | Pack
"""Examples that are computed together."""


def attention_mask(lengths: Tensor, width: int) -> Tensor | None:
    """(n, width) int64, 1 on the real tokens of examples of `lengths` (n,); None where nothing is padded."""
    if bool((lengths == width).all()):
        return None
    return (torch.arange(width) < lengths[:, None]).long()


def make_batch(split: TokenizedSplit, rows: np.ndarray, weights: np.ndarray) -> Batch:
    """Pads the examples `rows` (n,) of a split to their longest."""
    lengths = torch.from_numpy(split.lengths[rows].astype(np.int64))
    input_ids = np.zeros((len(rows), int(lengths.max())), np.int64)
    for line, row in zip(input_ids, rows, strict=True):
        tokens = split.tokens(int(row))
        line[: len(tokens)] = tokens
    return Batch(
        torch.from_numpy(input_ids),
        attention_mask(lengths, input_ids.shape[1]),
        lengths,
        torch.from_numpy(split.labels[rows]),
        torch.from_numpy(rows.astype(np.int64)),
        torch.from_numpy(weights.astype(np.float32)),
    )


def epoch_order(rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """A random order of all rows, from (seed, epoch) alone."""
    return np.random.Generator(np.random.Philox(key=[seed, 2**32 + epoch])).permutation(rows)


def strands_drawn(rows: int, *, seed: int, epoch: int) -> np.ndarray:
    """(rows,) 0 or 1, the strand on which an epoch reads each row, from (seed, epoch) alone."""
    return np.random.Generator(np.random.Philox(key=[seed, 2**33 + epoch])).integers(0, 2, rows)


class MicroBatches(NamedTuple):
    """The way from a process's examples of a step to padded batches.

    Attributes:
        size: examples of a batch at most.
        number: batches of a step.
    """

    size: int
    number: int


class PackBudget(NamedTuple):
    """The way from a process's examples of a step to packs.

    Attributes:
        budget: tokens of a pack at most.
        prefix: tokens that all examples of the split begin with, a pack's own may be more; 0: none is shared.
        most: examples of a pack at most; None: as many as the budget allows.
    """

    budget: int
    prefix: int
    most: int | None = None


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
        forwards: MicroBatches | PackBudget,
        rank: int,
        world: int,
        either_strand: bool = False,
    ):
        """Takes the split and how its examples become forwards.

        Args:
            split: the training rows.
            seed: of the order of examples.
            batch: examples of a step, of all processes together.
            forwards: padded batches or packs.
            rank: of this process.
            world: processes.
            either_strand: whether each epoch draws the strand on which it reads each example.
        """
        self._split, self._examples = split.both_strands() if either_strand else split, len(split)
        self.seed, self._batch = seed, batch
        self._forwards, self._rank, self._world = forwards, rank, world
        self._drawn: tuple[tuple[int, int], np.ndarray] | None = None

    def rows_at(self, step: int) -> np.ndarray:
        """Rows of the global batch of `step` (1-based), the same on every process.

        Of n examples that are read on either strand, n + k is the k-th on the other one.
        """
        per_epoch = -(-self._examples // self._batch)
        epoch, place = divmod(step - 1, per_epoch)
        # each is read once: meanwhile another thread may draw the next epoch, or an audit repair the seed
        seed, drawn = self.seed, self._drawn
        if drawn is None or drawn[0] != (seed, epoch):
            order = epoch_order(self._examples, seed=seed, epoch=epoch)
            if self._split.both:
                order += self._examples * strands_drawn(self._examples, seed=seed, epoch=epoch)[order]
            self._drawn = drawn = (seed, epoch), order
        return drawn[1][place * self._batch : (place + 1) * self._batch]

    def at(self, step: int) -> Sequence[Forward]:
        """This process's forwards of `step`: as many on every process, some with a dummy row."""
        rows = self.rows_at(step)
        if isinstance(self._forwards, MicroBatches):
            return list(_shares(self._split, rows, self._forwards, self._rank, self._world))
        budget, prefix, most = self._forwards
        own = self._split.lengths[rows] - prefix
        packs = assign_to_ranks(own, world=self._world, budget=max(budget - prefix, 1), most=most, turn=step)
        return [
            make_pack(self._split, *or_dummy_row(rows[places], rows), share_prefix=prefix > 0)
            for places in packs[self._rank]
        ]


class Prefetcher:
    """Builds the next step's batches in a thread of its own while this step's are computed."""

    def __init__(self, batches: TrainBatches, *, last_step: int, ready: Callable[[Forward], Forward]):
        """Takes the batches of all steps, and what else is done to each of them in that thread."""
        self._batches, self._last_step, self._ready = batches, last_step, ready
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[tuple[int, int], Future] | None = None

    @property
    def seed(self) -> int:
        """The seed, see `TrainBatches`; batches that were built with another one are not used."""
        return self._batches.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._batches.seed = seed

    def rows_at(self, step: int) -> np.ndarray:
        """Rows of a step, see `TrainBatches.rows_at`."""
        return self._batches.rows_at(step)

    def at(self, step: int) -> Sequence[Forward]:
        """Forwards of a step, see `TrainBatches.at`; those of the next step begin to be built."""
        wanted = self.seed, step
        if self._next is not None and self._next[0] == wanted:
            batches = self._next[1].result()
        else:
            batches = self._build(step)
        self._next = None
        if step < self._last_step:
            self._next = (self.seed, step + 1), self._worker.submit(self._build, step + 1)
        return batches

    def close(self) -> None:
        """Ends the thread."""
        self._worker.shutdown(cancel_futures=True)

    def _build(self, step: int) -> Sequence[Forward]:
        return [self._ready(forward) for forward in self._batches.at(step)]


class Model(PackedModel, PaddedModel, Protocol):
    """A model that computes packs and padded examples."""


def ready(forward: Forward, model: Model, device: torch.device) -> Forward:
    """A forward with all that its model must know of it; for a GPU, in pinned memory."""
    forward = forward.prepared(model)
    return transfer.pinned(forward) if device.type == "cuda" else forward


def prefetch(items: Iterable[Prefetched]) -> Generator[Prefetched, None, None]:
    """The items in their order, each next one computed in a thread while one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as worker:
        iterator = iter(items)
        following = worker.submit(next, iterator, None)
        while (item := following.result()) is not None:
            following = worker.submit(next, iterator, None)
            yield item


def eval_batches(
    split: TokenizedSplit, *, batch: int, rank: int, world: int, least: int = 1
) -> Iterator[Batch]:
    """This process's share of a split, longest first; as many batches on every process, `least` or more."""
    rows = np.argsort(-split.lengths, kind="stable")
    share = -(-len(rows) // world)
    count = max(-(-share // batch), least)
    return _shares(split, rows, MicroBatches(batch, count), rank, world)


def _shares(
    split: TokenizedSplit, rows: np.ndarray, batches: MicroBatches, rank: int, world: int
) -> Iterator[Batch]:
    """Batches of every `world`-th row, starting with the row `rank`."""
    own, size = rows[rank::world], batches.size
    for k in range(batches.number):
        yield make_batch(split, *or_dummy_row(own[k * size : (k + 1) * size], rows))
