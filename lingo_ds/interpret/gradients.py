"""Integrated gradients over one-hot DNA (Sundararajan et al. 2017, arXiv 1703.01365)."""

import logging
from collections.abc import Generator, Iterable
from typing import NamedTuple

import numpy as np
import torch

from lingo_ds.data.dna import reverse_complement
from lingo_ds.data.one_hot import one_hot
from lingo_ds.data.streams.sequences import Chunk
from lingo_ds.distributed import process_group, watchdog
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.one_hot import OneHotModel, no_gradient
from lingo_ds.interpret.explained import Explained, ExplainedBatch
from lingo_ds.interpret.target import Target

logger = logging.getLogger(__name__)

COMPLETE = 0.01
"""The share of a difference of outputs by which the sum of attributions may miss it."""

LEAST_DIFFERENCE = 0.1
"""Differences below it are taken for this in the check of completeness: a share of nothing says nothing."""


STEPS_AT_ONCE = 16
"""Steps whose activations are held at the same time."""


class Attributions(NamedTuple):
    """Integrated gradients of a sequence.

    Attributes:
        values: (length,) float64; they sum to `difference`, as nearly as the steps allow.
        difference: the score of the sequence less that of the baseline.
    """

    values: np.ndarray
    difference: float

    @property
    def miss(self) -> float:
        """By which share of the difference the sum misses it."""
        return abs(self.values.sum() - self.difference) / max(abs(self.difference), LEAST_DIFFERENCE)


def integrate(
    model: OneHotModel,
    chunks: Iterable[Chunk],
    target: Target,
    *,
    steps: int,
    both_strands: bool,
    env: DistEnv,
) -> Generator[ExplainedBatch, None, None]:
    """Attributions of each sequence; every process passes the same sequences and gets the same results.

    Raises:
        UserError: where the adapter reads text, which has no gradient of a base, or a sequence is longer
            than it reads.
    """
    worst, read = 0.0, 0.0
    for chunk in chunks:
        for number, (id, sequence) in enumerate(zip(chunk.ids, chunk.sequences, strict=True), 1):
            watchdog.beat()
            found = attribute(model, sequence, target, steps=steps, env=env)
            values, miss = found.values, found.miss
            if both_strands:
                other = attribute(model, reverse_complement(sequence), target, steps=steps, env=env)
                values, miss = (values + other.values[::-1]) / 2, max(miss, other.miss)
            if miss > max(COMPLETE, worst):
                text = (
                    "the attributions of %s miss the difference of outputs by %.1f %%: raise --steps above %d"
                )
                logger.warning(text, id, 100 * miss, steps)
                worst = miss
            effects = values.astype(np.float32)[:, None]
            share = number / len(chunk.ids)
            yield ExplainedBatch([Explained(id, sequence, effects)], read + share * (chunk.read - read))
        read = chunk.read


def attribute(model: OneHotModel, sequence: str, target: Target, *, steps: int, env: DistEnv) -> Attributions:
    """Integrated gradients of one sequence, from all N to its bases, by Gauss-Legendre quadrature.

    All processes compute as many steps each, so that a sharded backbone's gathers meet.
    """
    if not model.differentiable:
        raise no_gradient()
    x = one_hot([sequence], width=len(sequence))[0].to(model.device)
    nodes, weights = np.polynomial.legendre.leggauss(-(-steps // env.world_size) * env.world_size)
    mine = slice(env.global_rank, None, env.world_size)
    alphas = x.new_tensor((nodes[mine] + 1) / 2)
    shares = x.new_tensor(weights[mine] / 2)
    total = torch.zeros_like(x)
    for some, weight in zip(alphas.split(STEPS_AT_ONCE), shares.split(STEPS_AT_ONCE), strict=True):
        inputs = (some[:, None, None] * x).requires_grad_()
        scores = target.score(model.logits(inputs))
        (gradient,) = torch.autograd.grad(scores.sum(), inputs)
        total += (gradient * weight[:, None, None]).sum(0)
    values = (process_group.all_reduce_(total.contiguous()) * x).sum(0)
    with torch.no_grad():
        baseline, own = target.score(model.logits(torch.stack([torch.zeros_like(x), x]))).tolist()
    return Attributions(values.double().cpu().numpy(), own - baseline)
