"""What a DeepSpeed profile may not say."""

import json

import pytest
import torch

from lingo_ds.config import ZeroConfig
from lingo_ds.distributed import DistEnv
from lingo_ds.errors import UserError
from lingo_ds.profile import read_profile

CPU, GPU = (DistEnv(0, 0, 1, 1, torch.device(kind)) for kind in ("cpu", "cuda"))


def refused(zero: ZeroConfig, env: DistEnv = CPU) -> str:
    with pytest.raises(UserError) as caught:
        read_profile(zero, env)
    return str(caught.value)


@pytest.mark.parametrize("env", [CPU, GPU])
def test_weights_in_8_bits_are_held_where_they_are_used(env, tmp_path):
    zero = ZeroConfig(quantized_weights=True, nvme_path=tmp_path)
    assert read_profile(zero, env)["zero_optimization"]["zero_quantized_weights"] is True
    assert "zero_quantized_weights" not in read_profile(ZeroConfig(), env)["zero_optimization"]
    for profile in ("zero3_offload", "zero3_nvme"):
        said = refused(zero.model_copy(update={"profile": profile}), env)
        assert "zero.quantized_weights" in said and f"profile {profile} offloads them" in said


@pytest.mark.parametrize("key", ["zero_hpz_partition_size", "zero_quantized_weights"])
def test_what_other_settings_decide_is_none_of_a_profiles(tmp_path, key):
    profile = tmp_path / "mine.json"
    profile.write_text(json.dumps({"zero_optimization": {"stage": 3, key: 2}}))
    said = refused(ZeroConfig(profile=str(profile)))
    assert key in said and "is decided by zero." in said
