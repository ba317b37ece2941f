"""How many runs advance together, how many tokens a pass of theirs holds, and which groups share runs out."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from lingo_ds.config.run_config import RunConfig
from lingo_ds.planning.memory import USABLE_MEMORY
from lingo_ds.planning.plan import RunPlan, shard_group_of
from lingo_ds.planning.plan_inputs import Facts
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.units import as_bytes

ENOUGH_TOKENS = {"cpu": 2048, "cuda": 16384, "sharded": 16384}
"""Tokens of a pass from which more of them make it hardly faster by token (`benchmarks/fleet.py`).

On a CPU with whole copies, on a GPU, and where the backbone is sharded: gathers cost the same for any pass.
"""


GroupSize = Literal["auto"] | int
"""Processes of a group that trains runs of its own; auto: those that share a copy of the backbone."""


def facts_of_group(config: RunConfig, facts: Facts, size: GroupSize) -> Facts:
    """The facts of a run that a group of the processes trains by itself.

    Raises:
        UserError: where such groups do not divide the processes, or the backbone does not fit.
    """
    if size == "auto":
        asked = config.zero.shard_group
        size = shard_group_of(config, facts) if asked == "auto" else asked
    if facts.world_size % size:
        rule = f"does not divide the {facts.world_size} processes into groups, as placement=groups needs it"
        fix = "choose a divisor or auto, or set placement=replicated"
        raise UserError(Mistake("zero.shard_group", size, rule, fix), on_all=True)
    return replace(facts, world_size=size)


class GroupPlan(NamedTuple):
    """The groups of processes that share out the runs of a suite.

    Attributes:
        groups: how many there are; 1: all processes train the same runs.
        processes: of each.
        runs: how many are shared out.
    """

    groups: int
    processes: int
    runs: int

    @property
    def share(self) -> int:
        """Runs of a group, at most."""
        return math.ceil(self.runs / self.groups)

    def equations(self) -> Iterator[str]:
        """The arithmetic, where there are several groups."""
        if self.groups == 1:
            return
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        yield f"groups     {self.groups} of {processes}, each trains runs of its own"
        if (idle := self.groups - self.runs) > 0:
            yield f"idle       {idle} groups: start fewer processes, or set placement=replicated"


class FleetPlan(NamedTuple):
    """The passes of runs that advance together.

    Attributes:
        runs: how many of them.
        tokens: most tokens of a pass of several of them.
        run_bytes: memory that each run takes beside the others, the largest.
        shared_bytes: memory of what all runs share.
        pass_bytes: activations of such a pass.
        memory_bytes: memory of a process.
        sharded: whether a pass gathers the backbone.
    """

    runs: int
    tokens: int
    run_bytes: int
    shared_bytes: int
    pass_bytes: int
    memory_bytes: int
    sharded: bool

    def equations(self) -> Iterator[str]:
        """The arithmetic, one line each, as a person would check it."""
        total = self.runs * self.run_bytes + self.shared_bytes + self.pass_bytes
        runs = "run" if self.runs == 1 else "runs"
        saved = f", the backbone gathered once for all in place of {self.runs} times" if self.sharded else ""
        yield f"together   {self.runs} {runs}, {self.tokens:,} tokens a pass at most{saved}"
        yield (
            f"memory     {self.runs} x {as_bytes(self.run_bytes)} of a bank + {as_bytes(self.shared_bytes)} "
            f"shared + {as_bytes(self.pass_bytes)} activations = {as_bytes(total)} "
            f"of {as_bytes(self.memory_bytes)} per process (estimate)"
        )


def plan_fleet(plans: Sequence[RunPlan], *, concurrent: int | str, runs: int, device: str) -> FleetPlan:
    """Decides how many runs advance together.

    Args:
        plans: of the runs that may, each as if it were alone.
        concurrent: how many runs the user wants; `auto`: as many as fill a pass, and memory allows.
        runs: how many there are.
        device: `cpu` or `cuda`.

    Raises:
        UserError: where the banks of so many runs do not fit.
    """
    bank = max(plan.bytes_per_process["bank"] for plan in plans)
    others = {"bank", "activations"}
    shared = max(
        sum(size for part, size in plan.bytes_per_process.items() if part not in others) for plan in plans
    )
    by_token = max(plan.bytes_per_process["activations"] / plan.forward_tokens for plan in plans)
    own = max(plan.forward_tokens for plan in plans)
    memory, sharded = plans[0].facts.memory_bytes, any(plan.zero_stage == 3 for plan in plans)

    def tokens_beside(count: int) -> int:
        """Tokens for whose activations there is room beside the banks of so many runs."""
        return int((USABLE_MEMORY * memory - shared - count * bank) / by_token)

    if concurrent == "auto":
        place = "sharded" if sharded else device
        wanted = max(1, min(runs, ENOUGH_TOKENS[place] // own))
        count = next((n for n in range(wanted, 1, -1) if tokens_beside(n) >= n * own), 1)
    else:
        count = min(int(concurrent), runs)
        if count > 1 and tokens_beside(count) < own:
            rule = (
                f"runs at once need {as_bytes(count * bank)} for their banks alone, beside {as_bytes(shared)}"
            )
            raise UserError(Mistake("concurrent", count, rule, "lower it, or set auto"), on_all=True)
    tokens = min(count * own, max(tokens_beside(count), own))
    return FleetPlan(count, tokens, bank, shared, int(tokens * by_token), memory, sharded)
