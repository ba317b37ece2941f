"""Bytes that one process sent in steps: for TensorBoard step by step, for the report in sum."""

from typing import Any

from lingo_ds.distributed.traffic import Kind, Link, Tally
from lingo_ds.planning.traffic import by_link
from lingo_ds.training.meter import StepTraffic


class TrafficSum:
    """Adds up steps."""

    def __init__(self):
        self._steps = 0
        self._counted: dict[Kind, Tally] = {}
        self._expected = dict.fromkeys(map(str, Link), 0)
        self._cable = 0

    def add(self, traffic: StepTraffic) -> None:
        """Takes in one step."""
        self._steps += 1
        for kind, tally in traffic.counted.items():
            self._counted[kind] = self._counted.get(kind, Tally()) + tally
        for link, sent in by_link(traffic.expected).items():
            self._expected[link] += sent
        self._cable += cable_bytes(traffic)

    def report(self) -> dict[str, Any]:
        """Sums over all steps, plain JSON values."""
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
            "host": {"expected": self._cable, "per_step": self._cable / max(self._steps, 1)},
            "collectives": [
                {**kind._asdict(), "link": str(kind.link), **tally._asdict()}
                for kind, tally in sorted(self._counted.items())
            ],
        }


def traffic_scalars(traffic: StepTraffic) -> dict[str, int]:
    """TensorBoard's tags of one step, in bytes that one process sent."""
    counted, expected = sent_by_link(traffic.counted), by_link(traffic.expected)
    values = {f"traffic/{link}_bytes": sent for link, sent in counted.items()}
    values["traffic/host_bytes"] = cable_bytes(traffic)
    for kind, tally in traffic.counted.items():
        tag = f"traffic/{kind.link}_{kind.what}_bytes"
        values[tag] = values.get(tag, 0) + tally.sent
    return {**values, "traffic/unforeseen_bytes": sum(counted.values()) - sum(expected.values())}


def cable_bytes(traffic: StepTraffic) -> int:
    """Bytes that one host should send to others in a step, all of its processes together."""
    return sum(one.cable for one in traffic.expected)


def sent_by_link(counted: dict[Kind, Tally]) -> dict[str, int]:
    """Bytes that this process sent over each link."""
    sums = dict.fromkeys(map(str, Link), 0)
    for kind, tally in counted.items():
        sums[kind.link] += tally.sent
    return sums
