"""What each step's collectives moved, beside what they should move by the formula."""

from typing import NamedTuple

from lingo_ds.distributed.traffic import Kind, Tally, counter
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone.weight_sizes import Weights
from lingo_ds.planning.traffic import Collective, Spread, audit_traffic, mask_traffic, step_traffic


class StepTraffic(NamedTuple):
    """What one step moved, and what it should have moved by the formula."""

    counted: dict[Kind, Tally]
    expected: tuple[Collective, ...]


class Meter:
    """Reads the counter around a step; what lies between steps, evaluations above all, is not counted."""

    def __init__(self, model: AdaptedModel, weights: Weights, spread: Spread):
        self._model, self._weights, self._spread = model, weights, spread

    def start(self) -> None:
        """Before a step: notes what it will find, since the step itself may change it."""
        model = self._model
        self._found = {
            "start": model.backbone.start(),
            "wire": model.bank.wire.nbytes,
            "learns_inside": model.learns_inside,
        }
        counter.take()

    def finish(self, *, micro_batches: int, masked: int, audited: int) -> StepTraffic:
        """After a step.

        Args:
            micro_batches: forwards that it took.
            masked: triplets there were at the start, if it changed the masks; else 0.
            audited: parts that were audited in it, if any.
        """
        expected = step_traffic(self._weights, self._spread, micro_batches=micro_batches, **self._found)
        if masked:
            expected += (mask_traffic(self._spread, triplets=masked),)
        if audited:
            expected += (audit_traffic(self._spread, parts=audited),)
        return StepTraffic(counter.take(), expected)
