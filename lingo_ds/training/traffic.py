"""Bytes that each step's collectives sent, counted and by the formula."""

from typing import Any, NamedTuple

from lingo_ds.distributed.traffic import CollectiveKind, Link, Tally, counter
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone.weight_sizes import Weights
from lingo_ds.planning.traffic import Collective, Sharding, audit_traffic, by_link, mask_traffic, step_traffic


class StepTraffic(NamedTuple):
    """What one step sent, and what it should have sent by the formula."""

    counted: dict[CollectiveKind, Tally]
    expected: tuple[Collective, ...]


class Meter:
    """Reads the counter around a step; what lies between steps, evaluations above all, is not counted."""

    def __init__(self, model: AdaptedModel, weights: Weights, sharding: Sharding):
        self._model, self._weights, self._sharding = model, weights, sharding

    def start(self) -> None:
        """Begins a step: notes what it will find, since the step itself may change it."""
        self._gathers = self._model.backbone.start()
        self._reduce_bytes = self._model.bank.reduce_buffer.nbytes
        self._learns_inside = self._model.learns_inside
        counter.take()

    def finish(self, *, micro_batches: int, masked: int, audited: int) -> StepTraffic:
        """Ends a step.

        Args:
            micro_batches: forwards that it took.
            masked: triplets there were at the start, if it changed the masks; else 0.
            audited: fingerprints of an audit, if there was one; else 0.
        """
        expected = step_traffic(
            self._weights,
            self._sharding,
            micro_batches=micro_batches,
            reduce_buffer=self._reduce_bytes,
            learns_inside=self._learns_inside,
            start=self._gathers,
        )
        if masked:
            expected += (mask_traffic(self._sharding, triplets=masked),)
        if audited:
            expected += (audit_traffic(self._sharding, parts=audited),)
        return StepTraffic(counter.take(), expected)


class TrafficSum:
    """The traffic of many steps together."""

    def __init__(self) -> None:
        self._steps = 0
        self._counted: dict[CollectiveKind, Tally] = {}
        self._expected = dict.fromkeys(map(str, Link), 0)
        self._inter_host = 0

    def add(self, traffic: StepTraffic) -> None:
        """Adds one step."""
        self._steps += 1
        for kind, tally in traffic.counted.items():
            self._counted[kind] = self._counted.get(kind, Tally()).plus(tally)
        for link, sent in by_link(traffic.expected).items():
            self._expected[link] += sent
        self._inter_host += inter_host_bytes(traffic)

    def report(self) -> dict[str, Any]:
        """The sums over all steps, as plain JSON values."""
        counted = sent_by_link(self._counted)
        return {
            "steps": self._steps,
            "sent": {
                str(link): {
                    "counted": counted[link],
                    "expected": self._expected[link],
                    "per_step": counted[link] / max(self._steps, 1),
                }
                for link in Link
            },
            "host": {"expected": self._inter_host, "per_step": self._inter_host / max(self._steps, 1)},
            "collectives": [
                {**kind._asdict(), "link": str(kind.link), **tally._asdict()}
                for kind, tally in sorted(self._counted.items())
            ],
        }


def traffic_scalars(traffic: StepTraffic) -> dict[str, int]:
    """TensorBoard's tags of one step: bytes that one process sent."""
    counted, expected = sent_by_link(traffic.counted), by_link(traffic.expected)
    values = {f"traffic/{link}_bytes": sent for link, sent in counted.items()}
    values["traffic/host_bytes"] = inter_host_bytes(traffic)
    for kind, tally in traffic.counted.items():
        tag = f"traffic/{kind.link}_{kind.what}_bytes"
        values[tag] = values.get(tag, 0) + tally.sent
    return {**values, "traffic/unforeseen_bytes": sum(counted.values()) - sum(expected.values())}


def inter_host_bytes(traffic: StepTraffic) -> int:
    """Bytes that one host should send to others in a step, all of its processes together."""
    return sum(one.inter_host for one in traffic.expected)


def sent_by_link(counted: dict[CollectiveKind, Tally]) -> dict[str, int]:
    """Bytes that this process sent over each link."""
    sums = dict.fromkeys(map(str, Link), 0)
    for kind, tally in counted.items():
        sums[kind.link] += tally.sent
    return sums
