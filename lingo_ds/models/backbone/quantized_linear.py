"""Frozen linear maps in 8 or 4 bits, by bitsandbytes: quantised when read, dequantised when used.

int8 is the row-wise code of LLM.int8() (arXiv 2208.07339), nf4 QLoRA's NormalFloat4 (arXiv 2305.14314) in
blocks of 64 with double quantisation. A map is the product of its input with the dequantised weight, in the
compute dtype. bitsandbytes' own modules compute otherwise: the one for int8 rounds activations too, but for
outliers that it looks for in the whole batch, so that an example's answer depends on its neighbours; the one
for nf4 repacks its weights in a forward without gradient on some CPUs, and computes in bf16 from then on.
"""

import importlib.util
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lingo_ds.models.backbone.eight_bit import multiply_out
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.backbone.weight_files import WeightFiles
from lingo_ds.models.ops.frozen_map import FrozenMap
from lingo_ds.utils.errors import Mistake, UserError

NF4_BLOCK = 64
"""Entries of a map that share a scale in nf4."""
SCALES_BLOCK = 256
"""Scales that share a scale of their own."""
INT8_ROWS = 64
"""Rows of a map in int8 that are dequantised at once on a CPU, in its cache: 8 times as fast in bf16."""
TABLES = 4 * (16 + 256 + 1)
"""Bytes of the values that codes and scales stand for, and of the scales' mean: fp32, for every map."""


def require_bitsandbytes(quantization: str) -> None:
    """Checks, before anything is read, that what `backbone.quantization` asks for can be made.

    Raises:
        UserError: without the package.
    """
    if quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        rule, fix = "needs bitsandbytes", "pip install lingo_ds[quant]"
        raise UserError(Mistake("backbone.quantization", quantization, rule, fix))


def quantize_maps(
    spec: BackboneSpec, files: WeightFiles, quantization: str, *, dtype: torch.dtype, device: torch.device
) -> None:
    """Replaces the skeleton's maps by quantised ones, one after the other; biases are loaded later.

    No more than one map is in memory in full precision at once: it is read from the memory-mapped file, cast
    to the compute dtype on the device, and quantised there.
    """
    for name in spec.linear_maps:
        module = spec.skeleton.get_submodule(name)
        values = files.shaped(f"{name}.weight")
        if isinstance(module, Conv1D):
            values = values.t()
        weight = values.to(device=device, dtype=dtype).contiguous()
        parent, _, child = name.rpartition(".")
        setattr(
            spec.skeleton.get_submodule(parent),
            child,
            FORMS[quantization](weight, module._parameters["bias"]),
        )


class QuantizedMap(nn.Module):
    """x W^T + b, with W in fewer bits; it is used like a linear map, adapters included.

    Attributes:
        bias: (d_out,) or None.
        entries: number of W's entries.
    """

    def __init__(self, weight: Tensor, bias: nn.Parameter | None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.entries, self._dtype = weight.numel(), weight.dtype
        self.register_parameter("bias", bias)

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in) in the compute dtype, dequantised at every call."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(.., d_in) to (.., d_out)."""
        return FrozenMap(self)(x)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Int8Map(QuantizedMap):
    """W as whole numbers from -127 to 127, scaled by the largest entry of each row."""

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, bias: nn.Parameter | None):
        super().__init__(weight, bias)
        codes, scales, _ = _functional().int8_vectorwise_quant(weight.to(torch.float16))
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales[:, None] / 127)

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in) in the compute dtype, dequantised at every call."""
        if self.codes.is_cuda:
            return self.codes.to(self._dtype).mul_(self.scales)
        out = torch.empty(self.codes.shape, dtype=self._dtype)
        multiply_out(self.codes, self.scales, out, rows=INT8_ROWS)
        return out


class NF4Map(QuantizedMap):
    """W as 16 quantiles of a normal distribution, scaled by blocks; the scales are in 8 bits themselves."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None):
        super().__init__(weight, bias)
        # Blocks go on from row to row. bitsandbytes' kernel for AVX-512 loses its place in the scales where a
        # row ends inside of a block (seen in 0.50.2, d_in 96 and 352), so that each block is given as a row.
        flat = weight.view(-1)
        rest = -self.entries % NF4_BLOCK
        blocks = (F.pad(flat, (0, rest)) if rest else flat).view(-1, NF4_BLOCK)
        codes, state = _functional().quantize_4bit(
            blocks, blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.register_buffer("codes", codes)
        self._state = state

    @property
    def weight(self) -> Tensor:
        """(d_out, d_in) in the compute dtype, dequantised at every call."""
        flat = _functional().dequantize_4bit(self.codes, self._state)
        return flat.view(-1)[: self.entries].view(self.out_features, self.in_features)

    def scales(self) -> list[Tensor]:
        """All tensors but the codes."""
        state, inner = self._state, self._state.state2
        return [state.absmax, state.code, state.offset, inner.absmax, inner.code]


FORMS: dict[str, type[QuantizedMap]] = {"int8": Int8Map, "nf4": NF4Map}


def map_bytes(shape: tuple[int, int], quantization: str) -> int:
    """Bytes that a map of (d_out, d_in) takes quantised, its scales and tables included."""
    entries = math.prod(shape)
    if quantization == "int8":
        return entries + 4 * shape[0]
    blocks = math.ceil(entries / NF4_BLOCK)
    return blocks * NF4_BLOCK // 2 + blocks + 4 * math.ceil(blocks / SCALES_BLOCK) + TABLES


def quantized_facts(linear_maps: Mapping[str, tuple[int, int]], quantization: str) -> dict[str, int]:
    """Sizes of the quantised maps, as the fields of `ModelFacts` that are named by them."""
    if quantization == "none":
        return {}
    shapes = linear_maps.values()
    return {
        "quantized_parameters": sum(map(math.prod, shapes)),
        "quantized_bytes": sum(map_bytes(shape, quantization) for shape in shapes),
        "largest_quantized": max(map(math.prod, shapes)),
    }


def held_by_maps(module: nn.Module) -> tuple[int, int]:
    """Entries of the quantised maps inside a module, without biases, and the bytes that they take."""
    maps = [inner for inner in module.modules() if isinstance(inner, QuantizedMap)]
    tensors = [
        t for one in maps for t in (*one.buffers(), *(one.scales() if isinstance(one, NF4Map) else ()))
    ]
    return sum(one.entries for one in maps), sum(t.nbytes for t in tensors)


def _functional() -> Any:
    """The functions of bitsandbytes. Its import warns of kernels for the CPU that are not used here."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes.functional

    return bitsandbytes.functional
