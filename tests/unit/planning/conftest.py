"""Jobs of Llama 2's shapes on GPUs that are not here: the scenarios that costs are tested with."""

import json
from pathlib import Path

import pytest

from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed.process_group import detect
from lingo_ds.planning.cost.elsewhere import Cluster, Lengths, make_scenario, read_shapes
from lingo_ds.planning.cost.machine import gpu_machine

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
SIZES = {
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
DATA = Lengths(rows=100_000, tokens=128)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Folders that hold nothing but a config.json."""
    made = {size: tmp_path_factory.mktemp(size) for size in SIZES}
    for size, folder in made.items():
        (folder / "config.json").write_text(json.dumps(LLAMA | SIZES[size]))
    return made


@pytest.fixture(scope="module")
def plan(folders):
    """Makes the job of a model in a place, and with it the function that plans a changed config there."""
    shapes = {}

    def make(size, *, hosts=1, gpus=8, gpu="h200", link="400Gb", tokens=8192, **sections):
        sections = {"train": {"max_steps": 1000}} | sections
        sections["train"].setdefault("global_batch_size", hosts * gpus * tokens // DATA.tokens)
        config = RunConfig(
            name="x",
            backbone={"path": str(folders[size])} | sections.pop("backbone", {}),
            data={"path": "absent"},
            **sections,
        )
        if size not in shapes:
            shapes[size] = read_shapes(config, detect(), DATA)
        place = Cluster(hosts=hosts, per_host=gpus, machine=gpu_machine(gpu, link))

        def again(changed):
            return make_scenario(changed, shapes[size], place)

        return config, again(config), again

    return make
