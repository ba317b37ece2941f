"""liger-kernel's functions, where there is no GPU."""

import pytest
import torch

from lingo_ds.models.backbone.backbone import BackboneOptions, load_backbone
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.utils.errors import UserError
from tests.unit.models.random_models import ALONE


def test_fused_kernels_are_refused_without_a_gpu(folder):
    with pytest.raises(UserError, match=r"backbone\.fused_kernels: 'liger': needs a GPU: set it to off"):
        load_backbone(read_spec(folder), BackboneOptions(liger=True), dtype=torch.float32, env=ALONE)
