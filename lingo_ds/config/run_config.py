"""`RunConfig`, all settings of a run, and `PredictConfig`; validating them touches no disk and no network."""

import os
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from lingo_ds.config.adapter_config import AdapterConfig, HeadConfig, RankSamplingConfig
from lingo_ds.config.backbone_config import BackboneConfig, BackboneUse, ZeroConfig
from lingo_ds.config.data_config import DataConfig, PackingMode
from lingo_ds.config.fields import Name, PositiveInt, Section, UserPath, rule_error
from lingo_ds.config.task_config import METRICS, SelectionConfig, TaskConfig, check_fits
from lingo_ds.config.train_config import CheckpointConfig, TrainConfig

PATHS = (
    ("backbone", "path"),
    ("data", "path"),
    ("data", "root"),
    ("data", "cache_dir"),
    ("zero", "profile"),
    ("zero", "nvme_path"),
    ("checkpoint", "resume"),
)
"""Settings, by section, that may be paths."""


class RunConfig(Section):
    """All settings of one run."""

    name: Annotated[Name, Field(pattern=r"^\w[\w.-]*$")] = Field(
        description="Name of the run and of its folder."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="Seed of initial values, of the order of examples and of rank sampling."
    )
    output_dir: UserPath | None = Field(
        None, description="Folder of everything that the run writes. null: runs/<name>."
    )
    backbone: BackboneConfig
    data: DataConfig
    task: TaskConfig = TaskConfig()
    adapter: AdapterConfig = AdapterConfig()
    head: HeadConfig = HeadConfig()
    rank_sampling: RankSamplingConfig = RankSamplingConfig()
    train: TrainConfig = TrainConfig()
    selection: SelectionConfig = SelectionConfig()
    zero: ZeroConfig = ZeroConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _method(self) -> Self:
        if self.adapter.method == "svd":
            return self
        if self.adapter.init != "lora":
            raise rule_error(
                f"needs adapter.method svd, not {self.adapter.method}",
                "set adapter.init=lora",
                field="adapter.init",
                value=self.adapter.init,
            )
        for name, allowed in (("mode", "off"), ("orthogonality", 0.0)):
            if (value := getattr(self.rank_sampling, name)) != allowed:
                raise rule_error(
                    f"needs adapter.method svd, not {self.adapter.method}",
                    f"set rank_sampling.{name}={allowed}",
                    field=f"rank_sampling.{name}",
                    value=value,
                )
        return self

    @model_validator(mode="after")
    def _ranks(self) -> Self:
        if self.rank_sampling.mode != "off" and self.rank_sampling.target_rank > self.adapter.rank:
            raise rule_error(
                f"is above adapter.rank {self.adapter.rank}",
                "lower it, raise adapter.rank, or set rank_sampling.mode=off",
                field="rank_sampling.target_rank",
                value=self.rank_sampling.target_rank,
            )
        if self.rank_sampling.min_rank > self.rank_sampling.target_rank:
            raise rule_error(
                f"is above rank_sampling.target_rank {self.rank_sampling.target_rank}",
                "lower it, or raise rank_sampling.target_rank",
                field="rank_sampling.min_rank",
                value=self.rank_sampling.min_rank,
            )
        return self

    @model_validator(mode="after")
    def _task(self) -> Self:
        check_fits(self.task, self.selection, self.data.label_column)
        return self

    @property
    def metric(self) -> str:
        """The dev metric by which the adapter is selected."""
        metric = self.selection.metric
        return METRICS[self.task.family][0] if metric == "auto" else metric

    @property
    def run_dir(self) -> Path:
        """Folder of everything that the run writes."""
        return self.output_dir or Path("runs") / self.name


def from_anywhere(config: RunConfig) -> RunConfig:
    """The same run with absolute paths, so that it means the same in every working directory.

    What is neither a file nor a folder here, like a hub id, stays as it is.
    """

    def absolute(path: str | Path | None) -> str | Path | None:
        return type(path)(os.path.abspath(path)) if path is not None and os.path.exists(path) else path

    values = config.model_dump()
    values["output_dir"] = Path(os.path.abspath(config.run_dir))
    for section, name in PATHS:
        values[section][name] = absolute(values[section][name])
    if intervals := values["data"]["intervals"]:
        intervals["genome"] = absolute(intervals["genome"])
    return RunConfig.model_validate(values)


class PredictConfig(Section):
    """Settings of `predict`: how the adapter is computed; all else is stored with the adapter."""

    backbone: BackboneUse = BackboneUse()
    zero: ZeroConfig = ZeroConfig()
    packing: PackingMode = "auto"
    batch_tokens: PositiveInt | None = Field(
        None,
        description="Most tokens per forward pass on one process; a longer sequence has one to itself. null: "
        "what memory allows, at most 4096 on a CPU and 65536 on a GPU.",
    )
