"""How many runs advance together, and how many tokens a pass of theirs holds."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lingo_ds.planning.memory import USABLE_MEMORY
from lingo_ds.planning.plan import RunPlan
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.units import as_bytes

ENOUGH_TOKENS = {"cpu": 2048, "cuda": 16384, "sharded": 16384}
"""Tokens of a pass from which more of them make it hardly faster by token (`benchmarks/fleet.py`).

On a CPU with whole copies, on a GPU, and where the backbone is sharded: gathers cost the same for any pass.
"""


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
