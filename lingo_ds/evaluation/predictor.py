"""Predictions for a stream of sequences: chunk by chunk, in order, shared over all processes.

A process tokenises and computes only its own share of a chunk, and the next share is tokenised while this
one is computed. Memory does not grow with the number of sequences.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch

from lingo_ds.data.batches import Batch, eval_batches, prefetch
from lingo_ds.data.dna import require_dna
from lingo_ds.data.packing import Pack, common_prefix, eval_packs
from lingo_ds.data.prompt import make_prompt
from lingo_ds.data.streams.mutants import MutantChunk
from lingo_ds.data.streams.sequences import Chunk
from lingo_ds.data.streams.tiles import TileChunk
from lingo_ds.data.streams.variants import VariantChunk
from lingo_ds.data.task import Task
from lingo_ds.data.token_cache import tokenized_split
from lingo_ds.data.token_losses import TokenLosses
from lingo_ds.data.tokenization import NucleotideTokens, Tokenize
from lingo_ds.data.tokenized import TokenizedSplit
from lingo_ds.distributed import agreement, process_group
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.answers import answers, decide, mean_of_strands
from lingo_ds.evaluation.forward import gather_rows, own_logits
from lingo_ds.evaluation.one_hot import NucleotideModel, OneHotModel, TextModel
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.embedding_model import EmbeddingModel, find_layer
from lingo_ds.planning.memory import ForwardPlan
from lingo_ds.planning.micro_batch import WORTH_SHARING
from lingo_ds.planning.remedies import remedy_of_prediction
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.out_of_memory import report_out_of_memory
from lingo_ds.utils.transfer import upload

SEQUENCES_PER_CHUNK = 8192
"""The largest number of sequences in a chunk."""

FORWARDS = 32
"""Forwards of one process per chunk, about: enough to sort by length, few enough to lose little if killed."""


AnyChunk = TypeVar("AnyChunk", bound=Chunk | VariantChunk | TileChunk | MutantChunk)
RowChunk = TypeVar("RowChunk", bound=Chunk | VariantChunk | TileChunk)


class Predictions(NamedTuple):
    """A classifier's answers for n sequences.

    Attributes:
        labels: (n,) int64, the predicted class of each; in a multilabel task (n, labels), 0 or 1.
        probabilities: (n, classes) or (n, labels) float32.
    """

    labels: np.ndarray
    probabilities: np.ndarray


class Values(NamedTuple):
    """A regression's answers for n sequences: (n, values) float32, in the units of the training data."""

    values: np.ndarray


class Predicted(NamedTuple, Generic[AnyChunk]):
    """A chunk with its answers.

    Attributes:
        chunk: the chunk.
        answers: (n, outputs) float32 probabilities or values of its sequences in their order.
        logits: (n, outputs) float32, which the answers are made of; a probability near 1 loses digits.
        truncated: how many of its sequences were longer than the adapter reads.
        embeddings: (n, size) float32 pooled hidden states, where a layer's were asked for.
    """

    chunk: AnyChunk
    answers: np.ndarray
    logits: np.ndarray
    truncated: int
    embeddings: np.ndarray | None = None


class _Share(NamedTuple, Generic[AnyChunk]):
    """One process's part of a chunk.

    Attributes:
        chunk: the whole chunk.
        places: (k,) places of this process's sequences in the chunk.
        split: these sequences, tokenised; where there are none, the chunk's longest as a dummy; None: the
            whole chunk has none.
    """

    chunk: AnyChunk
    places: np.ndarray
    split: TokenizedSplit | None


class Predictor:
    """An adapter with its backbone, on all processes of a job.

    Attributes:
        task: the task that the adapter was trained for.
        env: this process's rank and device.
        plan: the size of a forward, and how the backbone is held.
        losses: what the sequences predicted so far lost on their way to tokens.
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
        """Takes a loaded model.

        Args:
            model: backbone and adapter.
            tokenize: turns text into token ids.
            task: the task that the adapter was trained for.
            causal: whether a token sees only earlier ones, so that sequences of a pack may share a prefix.
            plan: the size of a forward.
            env: this process's rank and device.
            average_strands: whether answers are the means over both strands of each sequence.
        """
        self._model, self._tokenize, self._causal = model, tokenize, causal
        self._average_strands = average_strands
        self._prompt = make_prompt(task.template, domain=task.domain)
        self.task, self.plan, self.env = task, plan, env
        self.losses = TokenLosses()

    @property
    def chunk_bases(self) -> int:
        """Number of bases with which a chunk ends; a token is one base or more."""
        return FORWARDS * self.plan.tokens * self.env.world_size

    @property
    def dtype(self) -> str:
        """Name of the data type of the computation, e.g. `bfloat16`."""
        return str(self._model.bank.dtype).removeprefix("torch.")

    def predict(self, sequences: Sequence[str]) -> Predictions | Values:
        """Predicts DNA sequences in their order; call it on all processes.

        Raises:
            UserError: naming each sequence that is empty or contains a letter that is no nucleotide.
        """
        require_dna(sequences)
        parts = [part.answers for part in self.stream(self._chunks_of(sequences))]
        found = np.concatenate([np.zeros((0, self.task.classes), np.float32), *parts])
        if self.task.kind == "regression":
            return Values(found)
        return Predictions(decide(found, self.task), found)

    def logits(self, sequences: Sequence[str]) -> np.ndarray:
        """Logits (n, outputs) float32 of upper-case DNA in its order; call it on all processes."""
        parts = [part.logits for part in self.stream(self._chunks_of(sequences))]
        return np.concatenate([np.zeros((0, self.task.classes), np.float32), *parts])

    def one_hot_model(self) -> OneHotModel:
        """The adapter as a `torch.nn.Module` that reads one-hot DNA, for tangermeme, captum and the like."""
        if isinstance(self._tokenize, NucleotideTokens):
            return NucleotideModel(
                self._model,
                frame=self._tokenize.frame(self._prompt),
                task=self.task,
                plan=self.plan,
                average_strands=self._average_strands,
            )
        return TextModel(self.logits, task=self.task, device=self.env.device)

    def embed(self, sequences: Sequence[str], layer: int | None = None) -> np.ndarray:
        """Pooled hidden states of DNA sequences, (n, size) float32; call it on all processes.

        They are pooled as the task's are, of an adapter that averages strands the mean of both.

        Args:
            sequences: DNA.
            layer: 0 for the input embeddings, up to the number of layers; None: the last, which the head
                reads.

        Raises:
            UserError: for a sequence as `predict`, or where there is no such layer.
        """
        layer = find_layer(layer, layers=self._model.backbone.layers)
        require_dna(sequences)
        parts = [part.embeddings for part in self.stream(self._chunks_of(sequences), layer=layer)]
        found = [part for part in parts if part is not None]
        return np.concatenate([np.zeros((0, self.embedding_size(layer)), np.float32), *found])

    def embedding_size(self, layer: int) -> int:
        """Width of the hidden states of a layer, see `find_layer`."""
        return EmbeddingModel(self._model, layer).size

    def stream(
        self, chunks: Iterable[AnyChunk], *, layer: int | None = None
    ) -> Generator[Predicted[AnyChunk], None, None]:
        """Predicts chunk after chunk; every process passes the same ones and gets the same results.

        Args:
            chunks: the sequences.
            layer: whose pooled hidden states are given as well, see `find_layer`; None: of none.

        Raises:
            UserError: on every process, for a mistake in the chunks or logits that are not finite; on one,
                where memory runs out.
        """
        with closing(prefetch(map(self._share, chunks))) as shares:
            while True:
                with agreement.errors_raised_on_all(self.env):
                    share = next(shares, None)
                if share is None:
                    return
                yield self._predict(share, layer)

    def _chunks_of(self, sequences: Sequence[str]) -> Iterator[Chunk]:
        ids, bases, begin = [], 0, 0
        for number, sequence in enumerate(sequences):
            ids.append(number)
            bases += len(sequence)
            if len(ids) >= SEQUENCES_PER_CHUNK or bases >= self.chunk_bases or number + 1 == len(sequences):
                some = [one.upper() for one in sequences[begin : number + 1]]
                yield Chunk(begin, ids, some, (number + 1) / len(sequences))
                ids, bases, begin = [], 0, number + 1

    def _share(self, chunk: AnyChunk) -> _Share[AnyChunk]:
        """Tokenises every n-th sequence by length, so that all processes have about as many bases."""
        longest_first = np.argsort([-len(sequence) for sequence in chunk.sequences], kind="stable")
        places = longest_first[self.env.global_rank :: self.env.world_size]
        if not chunk.sequences:
            return _Share(chunk, places, None)
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

    def _predict(self, share: _Share[AnyChunk], layer: int | None) -> Predicted[AnyChunk]:
        """Computes this process's share, and gathers the answers of all."""
        split, outputs = share.split, self.task.classes
        if split is None:
            nothing = np.zeros((0, outputs), np.float32)
            return Predicted(share.chunk, nothing, nothing, 0)
        lost, truncated = TokenLosses(), 0
        if len(share.places):
            lost, truncated = split.losses, split.truncated
        mine = [self._forwards_needed(split), truncated, *vars(lost).values()]
        gathered = process_group.all_gather(upload(torch.tensor(mine), self.env.device)).cpu()
        needed, (truncations, *losses) = int(gathered[:, 0].max()), gathered[:, 1:].sum(0).tolist()
        self.losses += TokenLosses(*losses)
        self._require_readable()
        model = self._model if layer is None else EmbeddingModel(self._model, layer)
        with report_out_of_memory("prediction", partial(remedy_of_prediction, self.plan)):
            rows, found = own_logits(model, self._forwards(split, needed), self.env.device)
        if not len(share.places):
            rows, found = rows[:0], found[:0]
        total, places = len(share.chunk.sequences), torch.from_numpy(share.places)
        if self._average_strands:
            places = torch.cat([places, places + total])
        strands = 1 + self._average_strands
        ordered = gather_rows(places[rows], found, total=strands * total, env=self.env)
        self._check_finite(ordered, share.chunk)
        logits, embeddings = ordered[:, :outputs], ordered[:, outputs:]
        if self._average_strands:
            logits = mean_of_strands(logits, self.task)
            embeddings = (embeddings[:total] + embeddings[total:]) / 2
        answered = answers(logits, self.task).astype(np.float32)
        return Predicted(share.chunk, answered, logits, truncations, None if layer is None else embeddings)

    def _require_readable(self) -> None:
        """Raises on every process where the sequences so far lose their DNA on their way to tokens."""
        try:
            self.losses.require_few()
        except UserError as error:
            raise UserError(error.mistakes, on_all=True) from None

    def _check_finite(
        self, logits: np.ndarray, chunk: Chunk | VariantChunk | TileChunk | MutantChunk
    ) -> None:
        """Raises on every process where logits (n, outputs) overflowed; n may hold both strands."""
        bad = ~np.isfinite(logits).all(1)
        if bad.any():
            first = chunk.ids[int(bad.argmax()) % len(chunk.sequences)]
            rule = f"gives logits that are not finite, first for sequence {first}"
            fix = "set backbone.dtype=fp32 or bf16"
            raise UserError(Mistake("backbone.dtype", self.dtype, rule, fix), on_all=True)

    def _forwards_needed(self, split: TokenizedSplit) -> int:
        if self.plan.packed:
            return min(-(-int(split.lengths.sum()) // self.plan.tokens), len(split))
        return -(-len(split) // self._batch_size(split))

    def _forwards(self, split: TokenizedSplit, count: int) -> Iterator[Batch] | Iterator[Pack]:
        """`count` forwards or more: the most that any process needs, so that all make the same number."""
        if not self.plan.packed:
            return eval_batches(split, batch=self._batch_size(split), rank=0, world=1, least=count)
        prefix = common_prefix(split, np.arange(len(split))) if self._causal else 0
        worth = prefix > 0 and prefix >= WORTH_SHARING * split.lengths.mean()
        return eval_packs(
            split, budget=self.plan.tokens, rank=0, world=1, share_prefix=bool(worth), least=count
        )

    def _batch_size(self, split: TokenizedSplit) -> int:
        """Number of examples with which a padded forward never has more tokens than the plan says."""
        return max(1, self.plan.tokens // int(split.lengths.max()))
