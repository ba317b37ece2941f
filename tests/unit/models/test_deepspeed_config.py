"""What a DeepSpeed profile may not say."""

import json

import pytest
import torch

from lingo_ds.config.backbone_config import ZeroConfig
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.backbone.deepspeed_config import read_profile
from lingo_ds.utils.errors import UserError

CPU, GPU = (DistEnv(0, 0, 1, 1, torch.device(kind)) for kind in ("cpu", "cuda"))


def refused(zero: ZeroConfig, env: DistEnv = CPU) -> str:
    with pytest.raises(UserError) as caught:
        read_profile(zero, env)
    return str(caught.value)


@pytest.mark.parametrize("env", [CPU, GPU])
@pytest.mark.parametrize("profile", ["zero3_offload", "zero3_nvme"])
def test_what_is_offloaded_is_not_in_8_bits(env, profile, tmp_path):
    zero = ZeroConfig(quantized_weights=True, nvme_path=tmp_path, profile=profile)
    said = refused(zero, env)
    assert "zero.quantized_weights" in said and f"profile {profile} offloads them" in said


def test_8_bits_are_none_of_deepspeeds_business(tmp_path):
    profile = tmp_path / "mine.json"
    profile.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}}))
    for given in (None, str(profile)):
        zero = ZeroConfig(quantized_weights=True, profile=given)
        assert "quantized" not in json.dumps(read_profile(zero, CPU))


@pytest.mark.parametrize(
    "key", ["zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_nontrainable_weights"]
)
def test_what_other_settings_decide_is_none_of_a_profiles(tmp_path, key):
    profile = tmp_path / "mine.json"
    profile.write_text(json.dumps({"zero_optimization": {"stage": 3, key: 2}}))
    said = refused(ZeroConfig(profile=str(profile)))
    assert key in said and "is decided by zero." in said
