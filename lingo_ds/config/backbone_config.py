"""The frozen language model and how its weights are spread: the sections `backbone` and `zero`."""

from typing import Any, Literal

from pydantic import Field, field_validator

from lingo_ds.config.fields import Name, PathText, PositiveInt, Section, UserPath


class BackboneUse(Section):
    """The frozen language model, as far as an adapter that knows its own needs it."""

    path: PathText | None = Field(
        None,
        description="Folder or hub id of the model. null: the one that the adapter was trained on, where it "
        "lay then.",
    )
    revision: Name | None = Field(None, description="Branch, tag or commit of a hub id. null: the newest.")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Type in which backbone and adapters compute. "
        "auto: bf16 on GPUs that have it, else fp16; on CPUs that have it bf16 from a hidden size of 512 on, "
        "else fp32.",
    )
    fused_kernels: Literal["auto", "off", "liger"] = Field(
        "auto",
        description="Kernels for norms, gates and rotary positions. off: those of transformers. auto: fused "
        "ones; on a GPU gates and positions are liger-kernel's, if it is installed. liger: as auto, but "
        "refused without liger-kernel.",
    )
    quantization: Literal["auto", "none", "int8", "nf4"] = Field(
        "auto",
        description="Quantisation of the frozen weights, as `backbone.quantization` of a run. "
        "auto: as the adapter was trained.",
    )
    trust_remote_code: bool = Field(
        False, description="Whether to run model code that comes with the backbone's files."
    )


class BackboneConfig(BackboneUse):
    """The frozen language model."""

    path: PathText = Field(description="Local Hugging Face folder, hub id, or `builtin:english`.")
    quantization: Literal["none", "int8", "nf4"] = Field(
        "none",
        description="Quantisation of the frozen maps inside the layers, by bitsandbytes; each process then "
        "holds a whole copy (ZeRO stage 0). int8: 8 bits by rows (arXiv 2208.07339); nf4: 4 bits with double "
        "quantisation (QLoRA, arXiv 2305.14314).",
    )
    activation_checkpointing: bool = Field(
        False,
        description="Whether the backward pass recomputes each decoder layer instead of keeping its "
        "activations: less memory, more time.",
    )


class ZeroConfig(Section):
    """How the frozen weights are spread over the processes."""

    stage: Literal["auto", 0, 3] = Field(
        "auto",
        description="3: sharded by DeepSpeed ZeRO-3; 0: a copy on every process; auto: 0 where a copy fits.",
    )
    shard_group: Literal["auto"] | PositiveInt = Field(
        "auto",
        description="Number of processes that share one copy. auto: the fewest whose memory holds it.",
    )
    hpz: Literal["auto", "off"] | PositiveInt = Field(
        "auto",
        description="Where a shard group reaches over hosts: number of processes of one host that hold a "
        "second copy, from which weights are gathered. auto: used where memory has room for it.",
    )
    quantized_weights: bool = Field(
        False,
        description="Whether a sharded backbone's maps are held and gathered in 8 bits, which changes them "
        "slightly.",
    )
    profile: PathText | None = Field(
        None,
        description="DeepSpeed JSON: a name in ds_configs, or a path. null: zero3 on GPUs, else zero3_cpu.",
    )
    nvme_path: UserPath | None = Field(
        None, description="Folder on a local disk, for the weights of a profile that offloads to NVMe."
    )

    @field_validator("stage", mode="before")
    @classmethod
    def _stage(cls, value: Any) -> Any:
        return int(value) if value in ("0", "3") else value
