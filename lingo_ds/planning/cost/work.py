"""Work of one process in one step: FLOPs by part, bytes moved, operations started, and the seconds of all."""

from collections.abc import Iterable
from typing import NamedTuple

from lingo_ds.models.backbone.weight_sizes import Weight
from lingo_ds.planning.cost.scenario import Scenario
from lingo_ds.planning.layer import BACKWARD
from lingo_ds.planning.traffic import gathered_again


class PassWork(NamedTuple):
    """Work of one process in one direction, over all micro-batches of a step."""

    products: float
    adapters: float
    attention: float
    moved: float
    operations: float


class Work(NamedTuple):
    """Work of a step: both directions, and FLOPs by part."""

    forward: PassWork
    backward: PassWork
    flops: dict[str, float]


def pass_work(scenario: Scenario) -> Work:
    """Work of one process in one step."""
    shape, facts = scenario.layer, scenario.plan.facts
    tokens, layers = scenario.tokens, facts.layers - (1 if scenario.last_layer_cut else 0)
    span = facts.mean_tokens / (2 if scenario.machine.causal_half and facts.causal else 1)
    examples = scenario.plan.global_batch_size / facts.world_size
    pooled = examples if scenario.last_layer_cut else 0  # tokens of the last layer
    forward = PassWork(
        products=2 * (tokens * (layers * shape.maps + (shape.before_attention if pooled else 0))
                      + pooled * shape.maps),
        adapters=2 * tokens * facts.layers * shape.rank * shape.adapted,
        attention=4 * tokens * layers * shape.queries * span,
        moved=tokens * (layers + (0.3 if pooled else 0)) * shape.moved * facts.compute_bytes,
        operations=scenario.plan.accumulation * facts.layers * shape.operations,
    )  # fmt: skip
    if not facts.learns_inside:
        nothing = PassWork(0, 0, 0, 0, 0)
        return Work(
            _with_unpacking(forward, scenario, scenario.weights.every),
            nothing,
            _flops(forward, nothing, nothing),
        )
    backward = PassWork(
        forward.products,  # gradients go to the input alone
        2 * forward.adapters,
        2.5 * forward.attention,
        BACKWARD * forward.moved,
        BACKWARD * forward.operations,
    )
    nothing = PassWork(0, 0, 0, 0, 0)
    again = forward if scenario.checkpointing else nothing
    flops = _flops(forward, backward, again)
    backward = PassWork(*(a + b for a, b in zip(backward, again, strict=True)))
    return Work(
        _with_unpacking(forward, scenario, scenario.weights.every),
        _with_unpacking(backward, scenario, gathered_again(scenario.weights, scenario.sharding)),
        flops,
    )


def _with_unpacking(part: PassWork, scenario: Scenario, gathered: Iterable[Weight]) -> PassWork:
    """Work including that of unpacking: gathered maps in 8 bits are read and written once more."""
    if not scenario.sharding.eight_bit:
        return part
    entries = scenario.plan.accumulation * sum(weight.entries for weight in gathered if weight.is_map)
    return part._replace(moved=part.moved + entries * (1 + scenario.plan.facts.compute_bytes))


def _flops(forward: PassWork, backward: PassWork, again: PassWork) -> dict[str, float]:
    parts = {
        "frozen maps": forward.products + backward.products,
        "adapters": forward.adapters + backward.adapters,
        "attention": forward.attention + backward.attention,
        "computed again": again.products + again.adapters + again.attention,
    }
    return {part: value for part, value in parts.items() if value}


def seconds(scenario: Scenario, part: PassWork) -> float:
    """Seconds of one direction: the device's, and the host's where it does not run ahead."""
    machine, width = scenario.machine, scenario.layer.hidden
    device = (
        part.products / machine.at_width(machine.products, width)
        + part.adapters / machine.at_width(machine.adapters, width)
        + part.attention / machine.attention
        + part.moved / machine.memory
    )
    host = part.operations * machine.dispatch
    return max(device, host) if machine.runs_ahead else device + host
