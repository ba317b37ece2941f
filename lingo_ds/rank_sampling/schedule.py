"""The budget of triplets over a run, and which steps change the masks (AdaLoRA, arXiv 2303.10512, eq. 12)."""

from dataclasses import dataclass

from lingo_ds.utils.errors import Mistake, UserError


@dataclass(frozen=True)
class BudgetSchedule:
    """Budget b(t) over steps t = 1..total, in triplets over all sites.

    Attributes:
        initial: b0, all triplets.
        target: bT, triplets after the final mask.
        t_init: warm-up steps at b0 (a duration).
        t_final: last steps at bT (a duration).
        total: T, steps of the run.
        interval: steps between masks in the middle phase.
    """

    initial: int
    target: int
    t_init: int
    t_final: int
    total: int
    interval: int

    def __post_init__(self) -> None:
        mistakes = []
        if self.t_init + self.t_final >= self.total:
            mistakes.append(
                Mistake(
                    "rank_sampling.t_init + rank_sampling.t_final",
                    f"{self.t_init} + {self.t_final}",
                    f"must be less than the run's {self.total} steps",
                    "shorten them (fractions below 1 scale with the run) or train longer",
                )
            )
        elif not self.mask_steps():
            mistakes.append(
                Mistake(
                    "rank_sampling.interval",
                    self.interval,
                    f"leaves no mask step between t_init {self.t_init} and step {self.final_step}",
                    "lower it",
                )
            )
        if self.target > self.initial:
            mistakes.append(
                Mistake(
                    "rank_sampling.target_rank",
                    self.target,
                    f"is above the {self.initial} triplets",
                    "lower it",
                )
            )
        if mistakes:
            raise UserError(mistakes)

    @property
    def final_step(self) -> int:
        """The step after which the masks never change again."""
        return self.total - self.t_final

    def budget_at(self, step: int) -> int:
        """b(t): cubic from `initial` to `target` between the warm-up and the last steps."""
        if step <= self.t_init:
            return self.initial
        if step > self.final_step:
            return self.target
        done = (step - self.t_init) / (self.final_step - self.t_init)
        return int((self.initial - self.target) * (1 - done) ** 3 + self.target)

    def is_mask_step(self, step: int) -> bool:
        """Whether masks change: at multiples of `interval` in the middle phase, and at the final mask."""
        inside = self.t_init < step < self.final_step
        return step == self.final_step or (inside and step % self.interval == 0)

    def mask_steps(self) -> range:
        """Steps of the middle phase at which masks change, without the final one."""
        first = (self.t_init // self.interval + 1) * self.interval
        return range(first, self.final_step, self.interval)

    def rho_at(self, step: int, *, rho: float, rho_final: float | None) -> float:
        """Probability that a kept triplet leaves at a mask step.

        Constant, or linear from `rho` to `rho_final` over the middle phase.
        """
        if rho_final is None:
            return rho
        done = (step - self.t_init) / (self.final_step - self.t_init)
        return rho + (rho_final - rho) * min(max(done, 0.0), 1.0)
