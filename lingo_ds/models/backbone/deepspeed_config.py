"""The DeepSpeed profile that a job uses: a file or one of ds_configs, and its `auto`s filled in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lingo_ds.config.backbone_config import ZeroConfig
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import make_folder
from lingo_ds.utils.resources import resource_path
from lingo_ds.utils.safe_read import read_json

OURS = {
    "zero_hpz_partition_size": "zero.hpz",
    "zero_quantized_weights": "zero.quantized_weights",
    "zero_quantized_nontrainable_weights": "zero.quantized_weights",
}
"""DeepSpeed's settings that no profile may have, and the settings that decide them."""


LARGE_LAYER = 128 * 1024**2
"""Bytes of a decoder layer from which the CPU gathers one map at a time and holds one layer."""


SMALL_WEIGHTS = 32
"""Most entries of a layer's norms and biases together, in hidden sizes; the smallest last map has more."""


def is_large(layer_bytes: int) -> bool:
    """Whether decoder layers of this size are held one at a time on the CPU, see `LARGE_LAYER`."""
    return layer_bytes >= LARGE_LAYER


def read_profile(zero: ZeroConfig, env: DistEnv) -> dict[str, Any]:
    """The DeepSpeed profile that a job uses.

    Raises:
        UserError: where it is not JSON, has what other settings decide, or no folder for what it offloads to
            NVMe; where what is offloaded is to be in 8 bits.
    """
    name = zero.profile or ("zero3" if env.device.type == "cuda" else "zero3_cpu")
    path = Path(name) if name.endswith(".json") else resource_path("ds_configs", f"{name}.json")
    try:
        profile = read_json(path)
        if not isinstance(profile, dict):
            raise ValueError("not a mapping")
        settings = profile.setdefault("zero_optimization", {})
        if not isinstance(settings, dict):
            raise ValueError("zero_optimization is not a mapping")
    except (OSError, ValueError) as error:
        rule = f"cannot be read as JSON settings ({error})"
        raise UserError(
            Mistake("zero.profile", path, rule, "name a profile of ds_configs or a file")
        ) from None
    for key, setting in OURS.items():
        if key in settings:
            rule = f"is decided by {setting}"
            raise UserError(Mistake("zero.profile", key, rule, "leave it out of the profile"))
    offload = settings.get("offload_param")
    offloads = isinstance(offload, dict) and offload.get("device", "none") != "none"
    if offloads and zero.quantized_weights:
        rule = f"is for weights that stay where they are used, and profile {name} offloads them"
        raise UserError(Mistake("zero.quantized_weights", "true", rule, "set false, or take another profile"))
    if isinstance(offload, dict) and offload.get("device") == "nvme" and not offload.get("nvme_path"):
        offload["nvme_path"] = _nvme_folder(zero, name, env)
    return profile


def fill_profile(
    profile: Mapping[str, Any],
    *,
    layer_parameters: int,
    hidden_size: int,
    compute_bytes: int,
    micro_batch_size: int,
    dtype: str,
    secondary_group: int,
) -> dict[str, Any]:
    """DeepSpeed's settings: the profile with every `auto` filled in; `dtype` is fp32, bf16 or fp16.

    Where gathering takes turns with computing (no `overlap_comm`), large layers are neither gathered ahead
    nor kept, and come weight by weight: together they would be copied out of one tensor as large as they.

    Raises:
        UserError: for an `auto` that is not known here.
    """
    overlaps = profile.get("zero_optimization", {}).get("overlap_comm", True)
    sparing = not overlaps and is_large(layer_parameters * compute_bytes)
    # A GPU may still compute the layer before, see `run_ahead`, and small weights stay: with them in these
    # numbers DeepSpeed would fetch one map of the layer after next by itself.
    whole, small = (2, SMALL_WEIGHTS * hidden_size) if overlaps else (3, 0)
    auto = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "bf16": dtype == "bf16",
        "fp16": dtype == "fp16",
        "stage3_allgather_sequential": sparing,
        "stage3_prefetch_bucket_size": 0 if sparing else max(layer_parameters - small, 1),
        "stage3_max_live_parameters": max(whole * (layer_parameters - small), layer_parameters) + 1,
        "stage3_max_reuse_distance": 0 if sparing else 2 * layer_parameters,
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }

    def filled(value: Any, key: str, section: str) -> Any:
        if isinstance(value, Mapping):
            return {k: filled(v, k, key) for k, v in value.items()}
        if value != "auto":
            return value
        name = section if key == "enabled" else key
        if name not in auto:
            rule = "is not a value the plan fills"
            raise UserError(Mistake("zero.profile", f"{key}: auto", rule, f"known: {', '.join(auto)}"))
        return auto[name]

    settings = {key: filled(value, key, "") for key, value in profile.items()}
    if secondary_group > 1:
        settings["zero_optimization"]["zero_hpz_partition_size"] = secondary_group
    return settings


def _nvme_folder(zero: ZeroConfig, profile: str, env: DistEnv) -> str:
    """The folder in which DeepSpeed clears and fills one by the rank: groups of processes have their own."""
    if zero.nvme_path is None:
        rule, fix = f"is needed for zero.profile {profile}", "name a folder on a local disk of every host"
        raise UserError(Mistake("zero.nvme_path", "nothing", rule, fix))
    folder = zero.nvme_path / f"group-{env.group}" if env.group else zero.nvme_path
    return str(make_folder(folder, setting="zero.nvme_path"))
