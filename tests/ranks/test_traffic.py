"""What is gathered of any model, with many words or a single layer too, is what the formula says."""

import copy
from pathlib import Path

import pytest
from transformers import (
    GPTNeoXConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.distributed.traffic import counter
from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.backbone.gathers import GatherState
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.backbone.weight_sizes import Weights
from lingo_ds.planning.traffic import Sharding, step_traffic
from lingo_ds.training.losses import cross_entropy_sum
from tests.ranks.spawn import run_ranks
from tests.ranks.test_zero import (
    COMMON,
    CONFIGS,
    global_batch,
    load_sharded,
    micro_batch,
    new_bank,
    place,
    random_model,
)

MORE = {
    "mistral": MistralConfig(**COMMON, intermediate_size=37, num_key_value_heads=2),
    "qwen3": Qwen3Config(**COMMON, intermediate_size=37, num_key_value_heads=2, head_dim=8),
    "neox": GPTNeoXConfig(**COMMON, intermediate_size=37, max_position_embeddings=64),
}
LAYERS = {"gpt2": "n_layer"}


def changed(config: PreTrainedConfig, **settings: int) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    for name, value in settings.items():
        setattr(config, name, value)
    return config


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    configs = {**CONFIGS, **MORE, "many words": changed(CONFIGS["llama"], vocab_size=4000)}
    for layers in (1, 2, 3):
        configs[f"{layers} layers"] = changed(CONFIGS["opt"], num_hidden_layers=layers)
    return {name: random_model(config, tmp_path_factory.mktemp("model")) for name, config in configs.items()}


def compared(rank: int, world_size: int, folders: dict[str, Path]) -> dict[str, list[tuple[int, int]]]:
    """Bytes gathered in each of six passes, and those foreseen, by model."""
    env = place(rank, world_size)
    return {name: passes(env, folder) for name, folder in folders.items()}


def passes(env: DistEnv, folder: Path) -> list[tuple[int, int]]:
    loaded = load_sharded(folder, env, group_size=env.world_size, checkpointing=False)
    model = AdaptedModel(loaded.backbone, new_bank(loaded.layout), pooling="last", dropout=0.0)
    sharding = Sharding(
        world_size=env.world_size,
        local_world_size=env.world_size,
        zero_stage=3,
        shard_group=env.world_size,
        entry_bytes=4,
    )
    return counted_and_foreseen(model, read_spec(folder).weights, sharding, fresh=True)


def counted_and_foreseen(
    model: AdaptedModel, weights: Weights, sharding: Sharding, *, fresh: bool
) -> list[tuple[int, int]]:
    """Bytes gathered in each of six passes, and those foreseen; `fresh`: no pass came before."""
    seen = []
    for step in range(3):
        model.backbone.train()
        for rows in ([0, 1, 2], [3, 4]):
            start = model.backbone.start()
            assert (start is GatherState.RECORDING) == (fresh and not seen)
            counter.take()
            part = micro_batch(global_batch(step), rows)
            cross_entropy_sum(part.logits(model), part.labels, part.weights).backward()
            counted = sum(tally.payload for kind, tally in counter.take().items() if kind.what == "weights")
            foreseen = step_traffic(weights, sharding, micro_batches=1, reduce_buffer=0, start=start)
            seen.append((counted, sum(one.payload for one in foreseen)))
    return seen


def test_gathers_of_any_model_are_foreseen(folders):
    for by_model in run_ranks(compared, 2, folders, timeout=400):
        for name, seen in by_model.items():
            assert len(seen) == 6 and all(counted for counted, _ in seen)
            for number, (counted, foreseen) in enumerate(seen):
                assert counted == foreseen, f"{name}, pass {number}"
