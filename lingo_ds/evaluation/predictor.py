"""Predictions for a stream of sequences: chunk by chunk, in order, shared over all processes.

A process tokenises and computes only its own share of a chunk, and the next share is tokenised while this
one is computed. What is held does not grow with the number of sequences.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch

from lingo_ds.data.batches import Batch, eval_batches, prefetch
from lingo_ds.data.dna import sequence_mistake
from lingo_ds.data.packing import Pack, common_prefix, eval_packs
from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.streams.sequences import Chunk
from lingo_ds.data.streams.variants import VariantChunk
from lingo_ds.data.task import Task
from lingo_ds.data.token_cache import tokenized_split
from lingo_ds.data.tokenization import Tokenize
from lingo_ds.data.tokenized import TokenizedSplit
from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.answers import answers, decide, mean_of_strands
from lingo_ds.evaluation.forward import gather_rows, own_logits
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.planning.memory import ForwardPlan
from lingo_ds.planning.micro_batch import WORTH_SHARING
from lingo_ds.utils.errors import Mistake, UserError

SEQUENCES_PER_CHUNK = 8192
"""Sequences of a chunk at most."""

FORWARDS = 32
"""Forwards of one process per chunk, about: enough to sort by length, few enough to lose little by a kill."""


class Predictions(NamedTuple):
    """What a classifier says of n sequences.

    Attributes:
        labels: (n,) int64, the predicted class of each; of a multilabel task (n, labels), 0 or 1.
        probabilities: (n, classes) or (n, labels) float32.
    """

    labels: np.ndarray
    probabilities: np.ndarray


class Values(NamedTuple):
    """What a regression says of n sequences: (n, values) float32, in the units of the training data."""

    values: np.ndarray


class Predicted(NamedTuple):
    """A chunk, its probabilities or values (n, outputs) in its order, and how many sequences were cut."""

    chunk: Chunk | VariantChunk
    answers: np.ndarray
    cut: int


class _Share(NamedTuple):
    """One process's part of a chunk.

    Attributes:
        chunk: the whole of it.
        places: (k,) of this process's sequences in the chunk.
        split: these, tokenised; where there are none, the chunk's first as a filler.
    """

    chunk: Chunk | VariantChunk
    places: np.ndarray
    split: TokenizedSplit


class Predictor:
    """An adapter ready to use, on all processes of a job.

    Attributes:
        task: what the adapter was trained for.
        env: this process's place in the job.
        plan: how much goes into a forward.
    """

    def __init__(
        self,
        model: AdaptedModel,
        *,
        tokenize: Tokenize,
        task: Task,
        causal: bool,
        plan: ForwardPlan,
        env: DistEnv,
        average_strands: bool = False,
    ):
        """Takes the model, what makes tokens of sequences, and whether a pack may share a prefix.

        With `average_strands`, probabilities are the means over both strands of each sequence.
        """
        self._model, self._tokenize, self._causal = model, tokenize, causal
        self._average_strands = average_strands
        self._prompt = make_prompt(task.template, domain=task.domain)
        self.task, self.plan, self.env = task, plan, env

    @property
    def chunk_bases(self) -> int:
        """Bases by which a chunk ends; a token is one base or more."""
        return FORWARDS * self.plan.tokens * self.env.world_size

    @property
    def dtype(self) -> str:
        """In which it computes."""
        return str(self._model.bank.dtype).removeprefix("torch.")

    def predict(self, sequences: Sequence[str]) -> Predictions | Values:
        """Labels and probabilities, or values, of DNA sequences in their order; call it on all processes.

        Raises:
            UserError: naming each sequence that is empty or has a letter that is no base.
        """
        checked = [sequence_mistake(one, f"sequences[{k}]") for k, one in enumerate(sequences)]
        if mistakes := [mistake for mistake in checked if mistake]:
            raise UserError(mistakes)
        parts = [part.answers for part in self.stream(self._chunks_of(sequences))]
        found = np.concatenate([np.zeros((0, self.task.classes), np.float32), *parts])
        if self.task.kind == "regression":
            return Values(found)
        return Predictions(decide(found, self.task), found)

    def stream(self, chunks: Iterable[Chunk | VariantChunk]) -> Iterator[Predicted]:
        """Predicts chunk after chunk; every process passes the same ones and gets the same results.

        Raises:
            UserError: on every process, for a mistake in the chunks or logits that are not finite.
        """
        with closing(prefetch(map(self._share, chunks))) as shares:
            while True:
                with agreement.errors_raised_on_all(self.env):
                    share = next(shares, None)
                if share is None:
                    return
                yield self._predict(share)

    def _chunks_of(self, sequences: Sequence[str]) -> Iterator[Chunk]:
        ids, bases, begin = [], 0, 0
        for number, sequence in enumerate(sequences):
            ids.append(number)
            bases += len(sequence)
            if len(ids) >= SEQUENCES_PER_CHUNK or bases >= self.chunk_bases or number + 1 == len(sequences):
                some = [one.upper() for one in sequences[begin : number + 1]]
                yield Chunk(begin, ids, some, (number + 1) / len(sequences))
                ids, bases, begin = [], 0, number + 1

    def _share(self, chunk: Chunk | VariantChunk) -> _Share:
        """Takes every n-th sequence by length, so that no process has much more than another."""
        longest_first = np.argsort([-len(sequence) for sequence in chunk.sequences], kind="stable")
        places = longest_first[self.env.global_rank :: self.env.world_size]
        chosen = [chunk.sequences[k] for k in (places if len(places) else longest_first[:1])]
        split = tokenized_split(
            chosen,
            [0] * len(chosen),
            tokenize=self._tokenize,
            prompt=self._prompt,
            max_length=self.task.max_length,
            both_strands=self._average_strands,
        )
        return _Share(chunk, places, split.widest)

    def _predict(self, share: _Share) -> Predicted:
        cut = share.split.truncated if len(share.places) else 0
        mine = torch.tensor([self._forwards_needed(share.split), cut], device=self.env.device)
        needed, cuts = process_group.all_gather(mine).T.tolist()
        rows, logits = own_logits(self._model, self._forwards(share.split, max(needed)))
        if not len(share.places):
            rows, logits = rows[:0], logits[:0]
        total, places = len(share.chunk.sequences), torch.from_numpy(share.places)
        if self._average_strands:
            places = torch.cat([places, places + total])
        places, strands = places[rows].to(self.env.device), 1 + self._average_strands
        ordered = gather_rows(places, logits, total=strands * total, env=self.env)
        bad = ~np.isfinite(ordered).all(1)
        if bad.any():
            first = share.chunk.ids[int(bad.argmax()) % total]
            rule = f"gives logits that are not finite, first for sequence {first}"
            fix = "set backbone.dtype=fp32 or bf16"
            raise UserError(Mistake("backbone.dtype", self.dtype, rule, fix), on_all=True)
        if self._average_strands:
            ordered = mean_of_strands(ordered, self.task)
        return Predicted(share.chunk, answers(ordered, self.task).astype(np.float32), sum(cuts))

    def _forwards_needed(self, split: TokenizedSplit) -> int:
        if self.plan.packed:
            return min(-(-int(split.lengths.sum()) // self.plan.tokens), len(split))
        return -(-len(split) // self._batch_size(split))

    def _forwards(self, split: TokenizedSplit, count: int) -> Iterator[Batch] | Iterator[Pack]:
        """`count` forwards or more; as many on every process, since `count` is the most that one needs."""
        if not self.plan.packed:
            return eval_batches(split, batch=self._batch_size(split), rank=0, world=1, least=count)
        prefix = common_prefix(split, np.arange(len(split))) if self._causal else 0
        worth = prefix > 0 and prefix >= WORTH_SHARING * split.lengths.mean()
        return eval_packs(
            split, budget=self.plan.tokens, rank=0, world=1, share_prefix=bool(worth), least=count
        )

    def _batch_size(self, split: TokenizedSplit) -> int:
        """Examples of a padded forward that never has more tokens than the plan says."""
        return max(1, self.plan.tokens // int(split.lengths.max()))
