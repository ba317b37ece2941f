"""What is known of a suite's runs before the first one starts: their plans, groups and passes."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lingo_ds.commands.plan import group_size
from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import Member, Suite
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.planning.fleet import FleetPlan, GroupPlan, GroupSize, plan_fleet
from lingo_ds.planning.plan import RunPlan
from lingo_ds.training.setup import prepare
from lingo_ds.training.shared_backbone import backbone_key
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)


class SuitePlan(NamedTuple):
    """How the runs of a suite are trained: the groups that share them out, and the passes of each group."""

    groups: GroupPlan
    fleet: FleetPlan

    def equations(self) -> Iterator[str]:
        """The arithmetic, one line each, as a person would check it."""
        yield from self.groups.equations()
        yield from self.fleet.equations()


class PlannedRuns(NamedTuple):
    """What is known of the runs that may start.

    Attributes:
        backbones: by title, in which form a run needs the loaded backbone.
        plan: how they are trained.
    """

    backbones: Mapping[str, Any]
    plan: SuitePlan


class _Planned(NamedTuple):
    plan: RunPlan
    backbone: Any


def plan_runs(suite: Suite, members: Sequence[Member], env: DistEnv) -> PlannedRuns:
    """Reads the data of every task and plans its runs, since the last run may start in days only.

    Groups are as large as the run needs that needs the largest.

    Raises:
        UserError: with the mistakes of all tasks and settings.
    """
    planned = _plan_each(members, env, group_size(suite))
    sizes = {one.plan.facts.world_size for one in planned.values()}
    if len(sizes) > 1:
        planned = _plan_each(members, env, max(sizes))
    plan = plan_passes([one.plan for one in planned.values()], suite, len(members), env)
    return PlannedRuns({title: one.backbone for title, one in planned.items()}, plan)


def _plan_each(members: Sequence[Member], env: DistEnv, group: GroupSize | None) -> dict[str, _Planned]:
    mistakes: dict[Mistake, None] = {}
    planned = {}
    for title, config in by_title(members).items():
        logger.info("data and plan of %s", title)
        try:
            setup = prepare(config, env, group=group)
            planned[title] = _Planned(setup.plan, backbone_key(setup))
        except UserError as error:  # raised on all processes, so they all continue with the next task
            mistakes |= dict.fromkeys(error.mistakes)
    if mistakes:
        raise UserError(list(mistakes), on_all=True)
    return planned


def by_title(members: Sequence[Member]) -> dict[str, RunConfig]:
    """A config for each task and setting, whose runs have the same plan whatever their seed."""
    return {member.title: member.config for member in members}


def plan_passes(plans: Sequence[RunPlan], suite: Suite, runs: int, env: DistEnv) -> SuitePlan:
    """The plan of so many runs, in groups as large as these plans of theirs are for."""
    size = max(plan.facts.world_size for plan in plans)
    groups = GroupPlan(env.world_size // size, size, runs)
    concurrent, device = suite.config.concurrent, env.device.type
    return SuitePlan(groups, plan_fleet(plans, concurrent=concurrent, runs=groups.share, device=device))
