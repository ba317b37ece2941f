"""Which GPUs, types and head sizes torch's flash attention is taken for."""

import pytest
import torch

from lingo_ds.models.backbone import flash_support

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
A100, RTX_3090, L40, H200, RTX_5090, T4, V100 = (8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (7, 5), (7, 0)


@pytest.mark.parametrize(
    ("dtype", "size", "gpu"),
    [(BF16, 64, H200), (FP16, 128, A100), (BF16, 8, L40), (BF16, 256, RTX_3090), (BF16, 224, A100)],
)
def test_flash_attention_is_taken_where_the_kernel_can_be(dtype, size, gpu):
    assert flash_support._obstacle(dtype, size, gpu) is None


@pytest.mark.parametrize(
    ("dtype", "size", "gpu", "words"),
    [
        (FP32, 64, H200, "is for bf16 and fp16"),
        (FP16, 64, T4, "needs compute capability 8.0, and this GPU has 7.5"),
        (FP16, 64, V100, "needs compute capability 8.0, and this GPU has 7.0"),
        (BF16, 12, H200, "needs a head size that is a multiple of 8 and at most 256, not 12"),
        (BF16, 264, H200, "at most 256, not 264"),
        (BF16, 208, RTX_3090, "has no backward pass for head size 208 on compute capability 8.6"),
        (BF16, 208, RTX_5090, "has no backward pass for head size 208 on compute capability 12.0"),
    ],
)
def test_where_it_cannot_be_the_reason_is_named(dtype, size, gpu, words):
    assert words in (flash_support._obstacle(dtype, size, gpu) or "")


def test_it_is_not_taken_on_rocm(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert flash_support._obstacle(BF16, 64, H200) == "is not used on ROCm"
