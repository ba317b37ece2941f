"""The DeepSpeed profile that a job uses, as a file or one of ds_configs."""

from pathlib import Path
from typing import Any

from lingo_ds.config import ZeroConfig
from lingo_ds.distributed import DistEnv
from lingo_ds.errors import Mistake, UserError
from lingo_ds.files import make_folder
from lingo_ds.resources import resource_path
from lingo_ds.untrusted import read_json

OURS = {
    "zero_hpz_partition_size": "zero.hpz",
    "zero_quantized_weights": "zero.quantized_weights",
    "zero_quantized_nontrainable_weights": "zero.quantized_weights",
}
"""DeepSpeed's settings that no profile may have, and what decides them."""


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
        assert isinstance(profile, dict), "not a mapping"
        settings = profile.setdefault("zero_optimization", {})
        assert isinstance(settings, dict), "zero_optimization is no mapping"
    except (OSError, ValueError, AssertionError) as error:
        rule = f"is no readable JSON settings ({error})"
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
        offload["nvme_path"] = _nvme_folder(zero, name)
    return profile


def _nvme_folder(zero: ZeroConfig, profile: str) -> str:
    if zero.nvme_path is None:
        rule, fix = f"is needed for zero.profile {profile}", "name a folder on a local disk of every host"
        raise UserError(Mistake("zero.nvme_path", "nothing", rule, fix))
    return str(make_folder(zero.nvme_path, setting="zero.nvme_path"))
