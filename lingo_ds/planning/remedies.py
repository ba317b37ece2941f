"""Which setting to lower where memory runs out after all, with its present value and the alternatives."""

from lingo_ds.config.backbone_config import ZeroConfig
from lingo_ds.config.run_config import RunConfig
from lingo_ds.planning.memory import ForwardPlan, ways_to_fit
from lingo_ds.planning.plan import RunPlan
from lingo_ds.utils.out_of_memory import Remedy


def remedy_of_run(config: RunConfig, plan: RunPlan) -> Remedy:
    """The size of a forward pass, which training and evaluation follow."""
    setting, value, least = "train.micro_batch_size", plan.micro_batch_size, 1
    if plan.micro_batch_tokens is not None:
        setting, value, least = "train.micro_batch_tokens", plan.micro_batch_tokens, plan.facts.longest
    first = f"set {max(value // 2, least)}"
    if value <= least:
        first = f"cut examples by data.max_length, {plan.facts.longest} tokens at most now"
    ways = []
    if plan.facts.learns_inside and not config.backbone.activation_checkpointing:
        ways.append("backbone.activation_checkpointing=true")
    if plan.zero_stage == 0 and plan.facts.world_size > 1 and config.backbone.quantization == "none":
        ways.append("zero.stage=3")
    return Remedy(setting, value, ", or ".join([first, *ways]))


def remedy_of_loading(zero: ZeroConfig, *, stage: int, processes: int) -> Remedy:
    """How the frozen weights are held."""
    first = "set zero.stage=3" if stage == 0 and processes > 1 else "add processes"
    return Remedy("zero.stage", stage, f"{first}, or {ways_to_fit(zero, 'bf16')}")


def remedy_of_prediction(plan: ForwardPlan) -> Remedy:
    """The size of a forward pass of `predict`."""
    return Remedy("batch_tokens", plan.tokens, f"set {max(plan.tokens // 2, 1)}")
