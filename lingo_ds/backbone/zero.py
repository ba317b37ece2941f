"""The one seam to DeepSpeed: a frozen module, partitioned by ZeRO stage 3 without optimizer."""

from functools import partial
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor, nn

from lingo_ds.backbone.load import WeightFiles, fill
from lingo_ds.backbone.spec import BackboneSpec
from lingo_ds.errors import Mistake, UserError


def shard(
    spec: BackboneSpec,
    files: WeightFiles,
    *,
    ds_config: dict[str, Any],
    group: dist.ProcessGroup | None,
    dtype: torch.dtype,
    device: torch.device,
) -> "ShardedModule":
    """Fills the skeleton: each process of `group` holds, and reads from disk, its own range of every weight.

    Args:
        spec: the backbone; its skeleton is filled in place.
        files: its weights.
        ds_config: DeepSpeed's settings, without any `auto` left.
        group: processes that share one copy; None: all.
        dtype: of the weights in memory.
        device: where they are used.

    Returns:
        The module with DeepSpeed's hooks on it.
    """
    module = spec.skeleton
    ds_config = _with_buffers(ds_config, spec, processes=dist.get_world_size(group))
    # The settings say the dtype, too: an argument here is taken for bf16 where there is no fp16.
    partitioner = deepspeed.zero.Init(config_dict_or_path=ds_config, data_parallel_group=group)
    assert partitioner.dtype == dtype, f"settings are for {partitioner.dtype}, weights are to be {dtype}"

    members, place = dist.get_world_size(group), dist.get_rank(group)
    # Room for any weight, used for one after the other: memory that is mapped already is filled faster.
    largest = max(value.numel() for value in module.parameters())
    room = torch.empty(largest, dtype=dtype, device=device)

    def range_of(count: int) -> tuple[int, int]:
        size = -(-count // members)
        return min(count, size * place), min(count, size * (place + 1))

    def own_range(name: str, old: nn.Parameter) -> nn.Parameter:
        # No broadcast (zero.Init would send every weight from the group's first process): of the whole weight
        # only this process's range is ever written to, and partitioning takes it to wherever it is kept.
        start, stop = range_of(old.numel())
        whole = room[: old.numel()]
        files.read_into(whole[start:stop], name, start)
        param = nn.Parameter(whole.view(old.shape), requires_grad=False)
        partitioner._convert_to_deepspeed_param(param)
        param.partition()
        return param

    fill(module, own_range)
    for name in spec.linear_maps:
        inner = module.get_submodule(name)
        if type(inner) is nn.Linear:  # Conv1D keeps its weight as it is
            inner.forward = partial(_linear, inner)
    buffers = {name: buffer.to(device) for name, buffer in module.named_buffers()}
    set_z3_leaf_modules(module, list(spec.layer_classes))  # one gather per decoder layer
    engine, *_ = deepspeed.initialize(model=module, config=ds_config)
    _put_back(module, buffers)
    # The first layer's weights are given back by the gradient that passes its input; without one they would
    # stay whole.
    module.get_input_embeddings().register_forward_hook(
        lambda _module, _args, output: output.requires_grad_()
    )
    return ShardedModule(module, engine)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    """A frozen map of (.., d_in) to (.., d_out), no view of anything: adapters write to it in place."""
    out = _FrozenProduct.apply(x.reshape(-1, x.shape[-1]), module)
    return torch.ops.aten._unsafe_view(out, [*x.shape[:-1], out.shape[-1]])


class _FrozenProduct(torch.autograd.Function):
    """Keeps the map and not its weight for the backward pass.

    torch's own keeps a transposed view, and with it every weight that was gathered in the forward pass: all
    of the model.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: nn.Linear) -> Tensor:
        ctx.module = module
        return nn.functional.linear(x, module.weight, module.bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.module.weight, None


def _with_buffers(ds_config: dict[str, Any], spec: BackboneSpec, *, processes: int) -> dict[str, Any]:
    """The settings, for weights on NVMe with buffers for the largest layer and what lies outside of layers.

    A buffer takes one weight's range; all of a layer are read at once.

    Raises:
        UserError: where NVMe is asked for and DeepSpeed cannot use it here.
    """
    zero = ds_config["zero_optimization"]
    offload = zero.get("offload_param", {})
    if offload.get("device") != "nvme":
        return ds_config
    require_nvme()
    layers = [module for module in spec.skeleton.modules() if isinstance(module, spec.layer_classes)]
    inside = [len(list(layer.parameters())) for layer in layers]
    weights = list(spec.skeleton.parameters())
    buffers = {
        "buffer_count": max(inside) + len(weights) - sum(inside),
        "buffer_size": -(-max(weight.numel() for weight in weights) // processes),
    }
    return ds_config | {"zero_optimization": zero | {"offload_param": buffers | offload}}


def require_nvme() -> None:
    """Checks that DeepSpeed's reader of NVMe can be built on this host.

    Raises:
        UserError: where it cannot.
    """
    if not AsyncIOBuilder().is_compatible():
        rule = "needs libaio with its headers, and a C++ compiler for DeepSpeed's reader"
        fix = "install libaio-dev and g++, or take zero3_offload"
        raise UserError(Mistake("zero.profile", "offload_param.device: nvme", rule, fix))


def _put_back(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    """DeepSpeed casts every buffer to the compute dtype; rotary frequencies need their fp32."""
    for name, value in buffers.items():
        owner, _, key = name.rpartition(".")
        module.get_submodule(owner)._buffers[key] = value


class ShardedModule:
    """A partitioned module: between forward and backward passes each process holds only its own ranges."""

    def __init__(self, module: nn.Module, engine: deepspeed.DeepSpeedEngine):
        self.module, self._engine = module, engine

    def held_entries(self) -> int:
        """Entries of the weights that this process holds now: its partitions, and whatever is gathered."""
        return sum(
            p.ds_tensor.numel() + (p.data.numel() if p.ds_status == ZeroParamStatus.AVAILABLE else 0)
            for p in self.module.parameters()
        )

    def gathered_weights(self) -> list[str]:
        """Weights that are whole on this process now, though they need not be: empty between steps."""
        return [
            name
            for name, p in self.module.named_parameters()
            if p.ds_status != ZeroParamStatus.NOT_AVAILABLE and not p.ds_persist
        ]

    def release(self) -> None:
        """After a forward without backward: gives back what was kept gathered for the backward pass."""
        self._engine.optimizer.empty_partition_cache()
