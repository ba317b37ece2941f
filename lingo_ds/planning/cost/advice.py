"""What to set: other ways to run the same job, each planned, its memory and seconds beside one another."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from lingo_ds.config.run_config import RunConfig
from lingo_ds.planning.cost.estimate import Estimate, estimate_step
from lingo_ds.planning.cost.scenario import Scenario, with_budget
from lingo_ds.planning.memory import USABLE_MEMORY
from lingo_ds.utils.errors import UserError

WORTH = 0.02
"""Share of a step that a change must save to be advised; 8 bits, which round weights, as much once more."""

PlanScenario = Callable[[RunConfig], Scenario]
"""Plans a config on the machines in question; raises UserError where it cannot run there."""


class Alternative(NamedTuple):
    """One row of the advice.

    Attributes:
        setting: what would be set; of the first row, what is set.
        bytes_per_process: memory of the model and its training at the peak; None: no plan can be made.
        seconds: seconds of one step; None where the estimate does not know them (offloaded weights).
        exposed: seconds of these in which only communication goes on.
        fits: whether a fifth of the memory stays free.
        best: whether to run the job so: the fastest that fits, unless it saves next to nothing.
    """

    setting: str
    bytes_per_process: int | None
    seconds: float | None
    exposed: float | None
    fits: bool
    best: bool = False


class _Planned(NamedTuple):
    """One way to run the job, with its estimate."""

    setting: str
    scenario: Scenario
    estimate: Estimate

    @property
    def fits(self) -> bool:
        return self.estimate.model_bytes <= USABLE_MEMORY * self.scenario.machine.memory_bytes

    @property
    def knows_seconds(self) -> bool:
        """Whether the estimate holds all of a step: it leaves out reading weights from the host's memory."""
        return not self.scenario.offload

    @property
    def sharding(self) -> tuple[int, int]:
        return self.scenario.plan.zero_stage, self.scenario.plan.shard_group

    def row(self, *, best: bool) -> Alternative:
        seconds = exposed = None
        if self.knows_seconds:
            seconds, exposed = self.estimate.seconds, self.estimate.exposed
        return Alternative(self.setting, self.estimate.model_bytes, seconds, exposed, self.fits, best)


def advise(config: RunConfig, scenario: Scenario, plan: PlanScenario) -> list[Alternative]:
    """The job as it is planned, then other ways to run it; at most one of them is the best."""
    now = _Planned(_as_planned(scenario), scenario, estimate_step(scenario))
    ways: list[_Planned | Alternative] = [
        now,
        *_shardings(config, now, plan),
        *_second_copies(config, now, plan),
        *_eight_bit(config, now, plan),
        _checkpointing(config, now, plan),
        *_offload(config, now, plan),
        *_larger_packs(now),
    ]
    best = _best(now, [way for way in ways if isinstance(way, _Planned)])
    return [way.row(best=way is best) if isinstance(way, _Planned) else way for way in ways]


def _as_planned(scenario: Scenario) -> str:
    plan = scenario.plan
    settings = [f"zero.stage={plan.zero_stage}"]
    settings += [f"zero.shard_group={plan.shard_group}"] if plan.zero_stage else []
    settings += [f"zero.hpz={plan.secondary_group}"] if plan.secondary_group > 1 else []
    return f"as planned ({' '.join(settings)})"


def _best(now: _Planned, ways: Sequence[_Planned]) -> _Planned | None:
    """The fastest that fits, where each doubt counts `WORTH` of a step: a change, and rounded weights.

    A change back to weights that are not rounded is no doubt. Ways whose seconds are not known count only
    where no other fits.
    """

    def cost(way: _Planned) -> float:
        rounds, rounded = way.scenario.sharding.eight_bit, now.scenario.sharding.eight_bit
        doubts = rounds + (way is not now and rounds >= rounded)
        return way.estimate.seconds / (1 - WORTH) ** doubts

    fitting = [way for way in ways if way.fits]
    return min([way for way in fitting if way.knows_seconds] or fitting, key=cost, default=None)


def _with_zero(config: RunConfig, plan: PlanScenario, setting: str, **zero: Any) -> _Planned | None:
    """The config with other settings of `zero`; None where it cannot be planned."""
    changed = config.model_copy(update={"zero": config.zero.model_copy(update=zero)})
    return _planned(changed, plan, setting)


def _planned(config: RunConfig, plan: PlanScenario, setting: str) -> _Planned | None:
    """A config with its estimate; None where it cannot be planned."""
    try:
        scenario = plan(config)
    except UserError:
        return None
    return _Planned(setting, scenario, estimate_step(scenario))


def _shardings(config: RunConfig, now: _Planned, plan: PlanScenario) -> Iterator[_Planned]:
    """A whole copy on every process, and every size of a shard group inside a host, two hosts, and all.

    Over all processes of several hosts also without a second copy: that is plain ZeRO-3.
    """
    facts = now.scenario.plan.facts
    world, local = facts.world_size, facts.local_world_size
    whole = _with_zero(config, plan, "zero.stage=0", stage=0, shard_group="auto")
    if whole is None:
        return
    groups = [
        g for g in range(2, world + 1) if world % g == 0 and (local % g == 0 or g in (world, 2 * local))
    ]
    ways = [whole]
    for group in groups:
        setting = f"zero.stage=3 zero.shard_group={group}"
        ways += filter(None, [_with_zero(config, plan, setting, stage=3, shard_group=group)])
    yield from (way for way in ways if way.sharding != now.sharding)
    if world > local and now.sharding != (3, world):
        setting = f"zero.stage=3 zero.shard_group={world} zero.hpz=off"
        plain = _with_zero(config, plan, setting, stage=3, shard_group=world, hpz="off")
        yield from filter(None, [plain])


def _second_copies(config: RunConfig, now: _Planned, plan: PlanScenario) -> Iterator[_Planned]:
    """A second copy inside each host pays where the first reaches over several."""
    sharding = now.scenario.sharding
    inside = math.gcd(sharding.shard_group, sharding.local_world_size)
    if sharding.zero_stage == 0 or sharding.hosts(sharding.shard_group) == 1 or inside == 1:
        return
    other: int | str = "off" if sharding.secondary_group > 1 else inside
    yield from filter(None, [_with_zero(config, plan, f"zero.hpz={other}", hpz=other)])


def _eight_bit(config: RunConfig, now: _Planned, plan: PlanScenario) -> Iterator[_Planned]:
    """Maps in 8 bits pay where nothing hides their gathers, or where memory is short."""
    if now.scenario.sharding.zero_stage == 0:
        return
    on = not now.scenario.sharding.eight_bit
    setting = f"zero.quantized_weights={str(on).lower()}"
    yield from filter(None, [_with_zero(config, plan, setting, quantized_weights=on)])


def _checkpointing(config: RunConfig, now: _Planned, plan: PlanScenario) -> _Planned | Alternative:
    """Layers computed again, or not."""
    on = not now.scenario.checkpointing
    setting = f"backbone.activation_checkpointing={str(on).lower()}"
    backbone = config.backbone.model_copy(update={"activation_checkpointing": on})
    planned = _planned(config.model_copy(update={"backbone": backbone}), plan, setting)
    return planned or Alternative(setting, None, None, None, fits=False)


def _offload(config: RunConfig, now: _Planned, plan: PlanScenario) -> Iterator[_Planned]:
    """Weights in the host's memory, for where the job does not fit and processes cannot be added."""
    if now.fits or now.scenario.offload:
        return
    setting = "zero.stage=3 zero.profile=zero3_offload"
    changes = {"stage": 3, "profile": "zero3_offload", "quantized_weights": False}
    yield from filter(None, [_with_zero(config, plan, setting, **changes)])


def _larger_packs(now: _Planned) -> Iterator[_Planned]:
    """Forwards as large as memory allows, where a step takes several."""
    plan, most = now.scenario.plan, now.estimate.most_tokens
    if plan.micro_batch_tokens is None or plan.accumulation == 1 or most <= plan.micro_batch_tokens:
        return
    scenario = with_budget(now.scenario, most)
    yield _Planned(f"train.micro_batch_tokens={most}", scenario, estimate_step(scenario))
