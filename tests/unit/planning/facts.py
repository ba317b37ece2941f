"""Facts of a small model and of Llama 2's, from which tests make plans."""

from dataclasses import replace
from typing import Any

import pytest

from lingo_ds.config.run_config import RunConfig
from lingo_ds.planning.plan import make_plan
from lingo_ds.planning.plan_inputs import Facts
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.units import GIB

SMALL = Facts(
    train_rows=4904,
    dev_rows=613,
    test_rows=613,
    longest=72,
    shared_prefix=0,
    mean_tokens=71.5,
    backbone_parameters=260_032,
    layer_parameters=45_440,
    layers=5,
    hidden_size=64,
    ffn_size=172,
    sites=35,
    bank_parameters=46_648,
    head_parameters=128,
    compute_bytes=4,
    packable=False,
    causal=True,
    world_size=1,
    local_world_size=1,
    memory_bytes=8 * GIB,
)
PACKED = replace(SMALL, packable=True, shared_prefix=20)
LLAMA_7B = replace(
    SMALL,
    backbone_parameters=6_607_343_616,
    layer_parameters=202_383_360,
    layers=32,
    hidden_size=4096,
    ffn_size=11_008,
    sites=224,
    bank_parameters=20_000_000,
    head_parameters=8192,
    compute_bytes=2,
    packable=False,
    causal=True,
    longest=128,
    shared_prefix=0,
)
LLAMA_70B = replace(
    LLAMA_7B,
    backbone_parameters=68_714_504_192,
    layer_parameters=855_654_400,
    layers=80,
    hidden_size=8192,
    ffn_size=28_672,
    sites=560,
    bank_parameters=103_000_000,
)


def config(**fields: Any) -> RunConfig:
    """A config with some fields set: `train__max_steps=3`."""
    values: dict[str, Any] = {"name": "x", "backbone": {"path": "x"}, "data": {"path": "x"}}
    for field, value in fields.items():
        section, _, name = field.partition("__")
        values.setdefault(section, {})[name] = value
    return RunConfig.model_validate(values)


def on(facts: Facts, world: int, *, per_host: int | None = None, memory: float | None = None) -> Facts:
    """The facts on `world` processes of `memory` GiB each."""
    bytes_each = facts.memory_bytes if memory is None else int(memory * GIB)
    return replace(facts, world_size=world, local_world_size=per_host or world, memory_bytes=bytes_each)


def refused(run: RunConfig, facts: Facts = SMALL) -> list[Mistake]:
    with pytest.raises(UserError) as caught:
        make_plan(run, facts)
    return caught.value.mistakes
