"""The DeepSpeed profile that a job uses, as a file or one of ds_configs."""

from pathlib import Path
from typing import Any

from lingo_ds.config import ZeroConfig
from lingo_ds.distributed import DistEnv
from lingo_ds.errors import Mistake, UserError
from lingo_ds.resources import resource_path
from lingo_ds.untrusted import read_json

OURS = {"zero_hpz_partition_size": "zero.hpz", "zero_quantized_weights": "zero.quantized_weights"}
"""DeepSpeed's settings that no profile may have, and what decides them."""


def read_profile(zero: ZeroConfig, env: DistEnv) -> dict[str, Any]:
    """The DeepSpeed profile that a job uses.

    Raises:
        UserError: where it is not JSON, or has what other settings decide; where there is no GPU for 8 bits.
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
    if zero.quantized_weights and env.device.type == "cpu":
        rule = "weights are packed into 8 bits by a GPU kernel, and there is none for the CPU"
        raise UserError(Mistake("zero.quantized_weights", "true", rule, "set false"))
    for key, setting in OURS.items():
        if key in settings:
            rule = f"is decided by {setting}"
            raise UserError(Mistake("zero.profile", key, rule, "leave it out of the profile"))
    return {**profile, "zero_optimization": settings | _quantized(zero)}


def _quantized(zero: ZeroConfig) -> dict[str, Any]:
    return {"zero_quantized_weights": True} if zero.quantized_weights else {}
