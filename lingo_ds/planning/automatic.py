"""Settings that are `auto`: numbers that follow from the backbone's size and from the length of the run."""

import logging
from typing import NamedTuple

from lingo_ds.config.adapter_config import AdapterConfig, RankSamplingConfig
from lingo_ds.config.fields import resolve_duration
from lingo_ds.config.run_config import RunConfig
from lingo_ds.rank_sampling.schedule import BudgetSchedule

logger = logging.getLogger(__name__)

RATE, HIDDEN, ALPHA = 5e-4, 2000, 16
"""Learning rate at a hidden size, as in "LoRA Without Regret" (Thinking Machines, 2025), and its alpha.

It is published for alpha 32. With 16 adapters move half as far in a step: what was measured here lies there.
"""

EXPONENT = 0.3
"""Of the hidden size: between the published 0.08 of Qwen and 0.78 of Llama (docs/benchmarks.md)."""

ADALORA_FACTOR = 2
"""Times the rate of adapters that start as LoRA's (docs/rank_sampling.md)."""

HEAD_FACTOR = 4
"""Times the rate of adapters that a head learns with where it learns alone."""

MASK_CHANGES = 20
"""Changes of the masks that a run has room for, about, where `rank_sampling.interval` is `auto`."""


AUTOMATIC = (("train", "learning_rate"), ("adapter", "alpha"), ("rank_sampling", "interval"))
"""Settings, by section, in whose place `with_numbers` puts what `auto` stands for."""


class LearningRate(NamedTuple):
    """A peak learning rate, and where it comes from."""

    value: float
    origin: str


def choose_learning_rate(config: RunConfig, *, hidden_size: int) -> LearningRate:
    """The config's learning rate, or the rule's for a backbone of this width.

    AdamW moves every entry of P by about the learning rate in a step, and the adapter's output by that times
    alpha, whatever its rank: so the rule counts on rate times alpha.
    """
    set_rate, adapter = config.train.learning_rate, config.adapter
    if set_rate != "auto":
        return LearningRate(set_rate, "as set")
    rate = RATE * (HIDDEN / hidden_size) ** EXPONENT
    rule = f"auto: {RATE:g} x ({HIDDEN} / {hidden_size} hidden)^{EXPONENT:g}"
    if adapter.method == "none":
        return LearningRate(_rounded(rate * HEAD_FACTOR), f"{rule} x {HEAD_FACTOR} for a head alone")
    rate, rule = rate * ALPHA / adapter.numerator, f"{rule} x {ALPHA} / {adapter.numerator:g} alpha"
    if adapter.init == "adalora":
        return LearningRate(_rounded(rate * ADALORA_FACTOR), f"{rule} x {ADALORA_FACTOR} for AdaLoRA's start")
    return LearningRate(_rounded(rate), rule)


def _rounded(rate: float) -> float:
    """Two digits, all that such a rule knows, so that the number can be written down and set."""
    return float(f"{rate:.1e}")


def choose_schedule(config: RunConfig, *, sites: int, steps: int) -> BudgetSchedule | None:
    """The budget of triplets over a run; None without sampling, or where `auto` finds no room for a mask.

    Raises:
        UserError: for numbers that were set and cannot work.
    """
    sampling = config.rank_sampling
    if sampling.mode == "off":
        return None
    t_init, t_final = (resolve_duration(part, total=steps) for part in (sampling.t_init, sampling.t_final))
    middle = steps - t_final - t_init
    if sampling.interval == "auto" and middle < 2 and sampling.scales:
        return None
    return BudgetSchedule(
        initial=sites * config.adapter.rank,
        target=sites * sampling.target_rank,
        t_init=t_init,
        t_final=t_final,
        total=steps,
        interval=max(1, round(middle / MASK_CHANGES)) if sampling.interval == "auto" else sampling.interval,
    )


def remark_on_masks(sampling: RankSamplingConfig, schedule: BudgetSchedule | None, *, steps: int) -> str:
    """What is to be said of a run that is too short for its masks; empty: nothing."""
    if sampling.mode == "off" or sampling.interval != "auto":
        return ""
    if schedule is None:
        return f"rank_sampling: off, a run of {steps} steps has no room for a change of masks"
    if (changes := len(schedule.mask_steps()) + 1) >= MASK_CHANGES // 2:
        return ""
    return (
        f"rank_sampling: a run of {steps} steps has room for {changes} changes of masks, not about "
        f"{MASK_CHANGES}: what they keep is little more than chance"
    )


def with_numbers(config: RunConfig, *, learning_rate: float, schedule: BudgetSchedule | None) -> RunConfig:
    """The config with a plan's numbers in place of `auto`, which mean the same run in any later version."""
    adapter = AdapterConfig.model_validate(config.adapter.model_dump() | {"alpha": config.adapter.numerator})
    train = config.train.model_copy(update={"learning_rate": learning_rate})
    sampling = config.rank_sampling
    if schedule:
        sampling = sampling.model_copy(update={"interval": schedule.interval})
    return config.model_copy(update={"adapter": adapter, "train": train, "rank_sampling": sampling})
