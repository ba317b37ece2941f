"""A job as it is planned: its derived numbers, the model's shapes, the sharding, and the machine."""

import math
from dataclasses import dataclass, replace

from lingo_ds.models.backbone.weight_sizes import Weights
from lingo_ds.planning.cost.machine import Machine
from lingo_ds.planning.layer import LayerShape
from lingo_ds.planning.plan import RunPlan
from lingo_ds.planning.traffic import Sharding


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Everything that an estimate starts from.

    Attributes:
        plan: the run's derived numbers.
        layer: shape of one decoder layer.
        weights: sizes of the backbone's weights.
        sharding: how they lie over processes.
        machine: rates of one process.
        checkpointing: whether layers are computed again in the backward pass.
        sampling: whether importance is averaged.
        offload: whether frozen weights stay in the host's memory between uses.
    """

    plan: RunPlan
    layer: LayerShape
    weights: Weights
    sharding: Sharding
    machine: Machine
    checkpointing: bool
    sampling: bool
    offload: bool = False

    @property
    def tokens(self) -> float:
        """Tokens that one process computes in a step, on average."""
        plan, facts = self.plan, self.plan.facts
        examples = plan.global_batch_size / facts.world_size
        if not plan.packed:
            return examples * facts.longest
        own = examples * (facts.mean_tokens - plan.shared_prefix)
        return own + plan.accumulation * plan.shared_prefix

    @property
    def last_layer_cut(self) -> bool:
        """Whether the last layer runs for pooled tokens alone."""
        return self.plan.packed


def with_budget(scenario: Scenario, tokens: int) -> Scenario:
    """The same job with packs of `tokens` at most."""
    facts, plan = scenario.plan.facts, scenario.plan
    prefix, share = plan.shared_prefix, math.ceil(plan.global_batch_size / facts.world_size)
    micro = max(1, min(share, int((tokens - prefix) // (facts.mean_tokens - prefix))))
    accumulation = math.ceil(share / micro)
    return replace(
        scenario,
        plan=replace(plan, micro_batch_tokens=tokens, micro_batch_size=micro, accumulation=accumulation),
    )
