"""The one seam to DeepSpeed: a frozen module, partitioned by ZeRO stage 3 without optimizer."""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.utils import groups, set_z3_leaf_modules
from torch import Tensor, nn

from lingo_ds.backbone.load import WeightFiles, fill
from lingo_ds.backbone.spec import BackboneSpec
from lingo_ds.counter import counter
from lingo_ds.traffic import Start


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
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # of an earlier backbone, perhaps of another size
    partitioner = deepspeed.zero.Init(config_dict_or_path=ds_config, dtype=dtype, data_parallel_group=group)

    def own_range(name: str, old: nn.Parameter) -> nn.Parameter:
        # No values and so no broadcast (zero.Init would send every weight from the group's first process):
        # the full-size tensor is never written to, and is freed by the next line.
        param = nn.Parameter(torch.empty(old.shape, dtype=dtype, device=device), requires_grad=False)
        partitioner._convert_to_deepspeed_param(param)
        param.partition()
        _fill_part(param.ds_tensor, dist.get_rank(group), name, files)
        if param.ds_secondary_tensor is not None:
            _fill_part(param.ds_secondary_tensor, partitioner.rank_in_group, name, files)
        return param

    _count_collectives()
    fill(module, own_range)
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


def _fill_part(part: Tensor, place: int, name: str, files: WeightFiles) -> None:
    """Reads the range of a weight that is the part at this place; what is beyond its end is 0."""
    start = part.ds_numel * place
    own = files.read(name, start, start + part.ds_numel)
    part.data[: own.numel()].copy_(own)
    part.data[own.numel() :].zero_()


def _count_collectives() -> None:
    """Lets the counter of traffic see what DeepSpeed issues, at the one object all of it passes."""
    backend = deepspeed.comm.comm.cdb
    if "all_gather_into_tensor" in vars(backend):
        return
    gather, broadcast = backend.all_gather_into_tensor, backend.broadcast

    def counted_gather(output_tensor, input_tensor, group=None, async_op=False):
        counter.add("all_gather", "weights", output_tensor.nbytes, group)
        return gather(output_tensor, input_tensor, group=group, async_op=async_op)

    def counted_broadcast(tensor, src, group=None, async_op=False):
        counter.add("broadcast", "order", tensor.nbytes, group)
        return broadcast(tensor, src, group=group, async_op=async_op)

    backend.all_gather_into_tensor, backend.broadcast = counted_gather, counted_broadcast


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
            p.ds_tensor.numel()
            + (0 if p.ds_secondary_tensor is None else p.ds_secondary_tensor.numel())
            + (p.data.numel() if p.ds_status == ZeroParamStatus.AVAILABLE else 0)
            for p in self.module.parameters()
        )

    def gathered_weights(self) -> list[str]:
        """Weights that are whole on this process now, though they need not be: empty between steps."""
        return [
            name
            for name, p in self.module.named_parameters()
            if p.ds_status != ZeroParamStatus.NOT_AVAILABLE and not p.ds_persist
        ]

    def start(self) -> Start:
        """What the next forward and backward pass must gather."""
        if self._engine.optimizer.get_param_coordinator().is_invalid_trace():
            return Start.RECORDING
        small = (p.ds_status for p in self.module.parameters() if p.ds_persist)
        return Start.FILLING if ZeroParamStatus.NOT_AVAILABLE in small else Start.STEADY

    def release(self) -> None:
        """After a forward without backward: gives back what was kept gathered for the backward pass."""
        self._engine.optimizer.empty_partition_cache()
