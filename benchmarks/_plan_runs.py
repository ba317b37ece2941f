"""What `plan_accuracy` runs: one training job per setting, on one host or on two with a cable."""

from pathlib import Path
from typing import NamedTuple

from benchmarks._training_runs import Measured, launch, measured, our_config
from benchmarks._workloads import MADE, Work, Workload, make_backbone, prepare
from lingo_ds.config.run_config import RunConfig
from tests.hosts.hosts import Hosts

SHAPES = {
    "6M": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 4},
    "51M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16, "num_attention_heads": 8},
    "85M": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "154M": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
    },
}
"""Llama shapes with random weights, by their number of parameters."""

LEARNING_RATE = 1e-4


class Setting(NamedTuple):
    """One training job.

    Attributes:
        shape: of the backbone, a name in `SHAPES`.
        processes: over all hosts.
        stage: of ZeRO.
        group: processes that share one copy; None as the plan chooses.
        batch: examples of a step.
        length: bases, and so tokens, of an example.
        checkpointing: whether layers are computed again in the backward pass.
        eight_bit: whether maps are held and gathered in 8 bits.
        link: what `tc` lets through between two hosts, e.g. `100mbit`; None: one host.
    """

    shape: str
    processes: int
    stage: int
    batch: int
    length: int = 200
    group: int | None = None
    checkpointing: bool = False
    eight_bit: bool = False
    link: str | None = None

    @property
    def hosts(self) -> int:
        return 1 if self.link is None else 2

    @property
    def name(self) -> str:
        """Of the row, and of its file."""
        parts = [self.shape, f"p{self.processes}", f"stage{self.stage}"]
        parts += [f"group{self.group}"] if self.group else []
        parts += [
            f"{self.batch}x{self.length}",
            *(["recompute"] if self.checkpointing else []),
            *(["8 bits"] if self.eight_bit else []),
            self.link or "",
        ]
        return " ".join(parts).strip()


def make_shape(name: str, folder: Path) -> Path:
    """A backbone with random weights."""
    if name == "tiny":
        return make_backbone(name, folder)
    size = SHAPES[name]
    MADE[name] = size | {
        "num_key_value_heads": size["num_attention_heads"],
        "head_dim": size["hidden_size"] // size["num_attention_heads"],
        "initializer_range": size["hidden_size"] ** -0.5,
    }
    return make_backbone(name, folder)


def make_work(setting: Setting, backbone: Path, folder: Path, *, steps: int) -> Work:
    """Its data: sequences of one length."""
    workload = Workload((setting.length,), "no prefix", lambda tokenizer: None)
    return prepare(workload, backbone, folder, batch=setting.batch, steps=steps, learning_rate=LEARNING_RATE)


def config_of(setting: Setting, work: Work, folder: Path) -> RunConfig:
    """The run's settings."""
    config = our_config(work, folder, dtype="fp32", stage=setting.stage, adapter={"method": "svd"})
    backbone = config.backbone.model_copy(update={"activation_checkpointing": setting.checkpointing})
    sharding = {"shard_group": setting.group or "auto", "hpz": "off", "quantized_weights": setting.eight_bit}
    return config.model_copy(update={"backbone": backbone, "zero": config.zero.model_copy(update=sharding)})


def run_setting(setting: Setting, work: Work, folder: Path, hosts: Hosts | None) -> Measured:
    """Trains, in an empty folder."""
    config = config_of(setting, work, folder)
    (folder / "config.yaml").write_text(config.to_yaml())
    script = ["launchers/train.py", "--config", str(folder / "config.yaml")]
    if setting.link is None:
        launch(script, folder, setting.processes)
    else:
        hosts.limit(setting.link)
        launch(script, folder, setting.processes, hosts=hosts)
    return measured(config.run_dir)
