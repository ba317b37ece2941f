"""Examples and tokens of one forward pass: what memory allows, or what the config asks for."""

import math

from lingo_ds.config.run_config import RunConfig
from lingo_ds.planning.layer import PRODUCT_CODE_BYTES
from lingo_ds.planning.plan_inputs import Facts

WORTH_SHARING = 0.03
"""Share of an example that a common prefix must be: sharing costs each example a copy of its keys."""


def example_bytes(config: RunConfig, facts: Facts) -> int:
    """Activations that the longest example keeps for the backward pass."""
    return facts.longest * token_bytes(config, facts)


def token_bytes(config: RunConfig, facts: Facts) -> int:
    """Activations that one token keeps for the backward pass."""
    in_layer = facts.kept_in_layer or facts.inside_layer
    if not facts.learns_inside:  # the head alone: no layer keeps anything
        kept = facts.inside_layer
    elif config.backbone.activation_checkpointing:
        kept = facts.layers * facts.hidden_size + facts.inside_layer
    else:
        kept = facts.layers * in_layer
    return kept * facts.compute_bytes


def product_code_bytes(facts: Facts, examples: int, forwards: int) -> int:
    """What the CPU's compiled products take at the end of a run: as much again for each length of a forward.

    The lengths of `forwards` forwards of so many examples spread by the root of that number.
    """
    spread = 2 * (facts.longest - facts.mean_tokens) * math.sqrt(examples)
    return int(facts.products * PRODUCT_CODE_BYTES * min(forwards, 1 + spread))


def choose_micro_batch(config: RunConfig, facts: Facts, free: float, tokens: int | None) -> int:
    """The largest micro-batch that the memory estimate allows, at most one process's share of the batch."""
    share = math.ceil(config.train.global_batch_size / facts.world_size)
    most = min(config.train.micro_batch_size or share, share)
    if tokens is not None:
        prefix = prefix_shared(facts)
        return max(1, min(most, int((tokens - prefix) // max(facts.mean_tokens - prefix, 1))))
    if config.train.micro_batch_size:
        return most
    return max(1, min(share, int(free // example_bytes(config, facts))))


def choose_micro_batch_tokens(config: RunConfig, facts: Facts, free: float) -> int | None:
    """Tokens of a pack: what memory allows or the config says, at most a process's share of the batch."""
    if config.data.packing == "off" or not facts.packable:
        return None
    share = math.ceil(config.train.global_batch_size / facts.world_size)
    examples = min(config.train.micro_batch_size or share, share)
    prefix = prefix_shared(facts)
    most = prefix + examples * (facts.longest - prefix)
    fitting = int(free // token_bytes(config, facts))
    return max(facts.longest, min(most, config.train.micro_batch_tokens or fitting))


def prefix_shared(facts: Facts) -> int:
    """Tokens that a pack holds once for all its examples; 0 where sharing is impossible or does not pay."""
    worth = facts.causal and facts.shared_prefix >= WORTH_SHARING * facts.mean_tokens
    return facts.shared_prefix if worth else 0
