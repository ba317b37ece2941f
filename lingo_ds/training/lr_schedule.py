"""The learning rate over a run: warm-up, then linear, cosine or constant."""

import math


def learning_rate_factor(step: int, *, steps: int, warmup_steps: int, decay: str) -> float:
    """Factor on the peak learning rate at a step.

    Args:
        step: counted from 1.
        steps: steps of the whole run; the factor would reach 0 one step after the last.
        warmup_steps: steps in which the factor rises linearly to 1.
        decay: `linear`, `cosine` or `constant`, after the warm-up.
    """
    if step <= warmup_steps:
        return step / warmup_steps
    done = (step - warmup_steps) / max(steps - warmup_steps + 1, 1)
    return {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[decay]
