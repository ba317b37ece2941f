"""In-silico saturation mutagenesis: every base to every other, and what that does to one output."""

from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing

import numpy as np
import torch

from lingo_ds.data.streams.mutants import Original, changes, mutant_chunks
from lingo_ds.data.streams.sequences import Chunk
from lingo_ds.evaluation.predictor import SEQUENCES_PER_CHUNK, Predictor
from lingo_ds.interpret.explained import Explained, ExplainedBatch
from lingo_ds.interpret.target import Target


def saturate(
    predictor: Predictor, chunks: Iterable[Chunk], target: Target, *, both_strands: bool
) -> Generator[ExplainedBatch, None, None]:
    """Effects of all changes of each sequence; every process passes the same and gets the same results.

    The changed sequences are a stream of their own, which is never held as a whole: 3 per base, and the
    sequence itself.

    Args:
        predictor: computes the sequences.
        chunks: the sequences.
        target: the output whose score changes.
        both_strands: whether scores are means over a sequence and its reverse complement.
    """
    mutants = mutant_chunks(
        chunks, both_strands=both_strands, most=SEQUENCES_PER_CHUNK, most_bases=predictor.chunk_bases
    )
    waiting: deque[Original] = deque()
    scores = np.zeros(0)
    with closing(predictor.stream(mutants)) as stream:
        for part in stream:
            waiting.extend(part.chunk.originals)
            scores = np.concatenate([scores, target.score(torch.from_numpy(part.logits)).numpy()])
            found = []
            while waiting and (needed := _count(waiting[0], both_strands)) <= len(scores):
                own, scores = scores[:needed], scores[needed:]
                if both_strands:
                    own = own.reshape(-1, 2).mean(1)
                found.append(_explained(waiting.popleft(), own))
            yield ExplainedBatch(found, part.chunk.read, part.truncated)


def _count(original: Original, both_strands: bool) -> int:
    """Sequences that are computed for one."""
    return (1 + sum(1 for _ in changes(original.sequence))) * (1 + both_strands)


def _explained(original: Original, scores: np.ndarray) -> Explained:
    """Effects by the scores (1 + changes,) of a sequence and its changes."""
    effects = np.zeros((len(original.sequence), 4), np.float32)
    positions, places = np.array(list(changes(original.sequence))).T
    effects[positions, places] = scores[1:] - scores[0]
    return Explained(original.id, original.sequence, effects)
