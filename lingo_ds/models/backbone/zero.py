"""The one seam to DeepSpeed: a frozen module, partitioned by ZeRO stage 3 without optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.zero.partition_parameters import (
    MultipleAllGatherHandles,
    PartitionedParamStatus,
    ZeroParamStatus,
    free_param,
)
from deepspeed.utils import groups, set_z3_leaf_modules
from torch import Tensor, nn

from lingo_ds.models.backbone.deepspeed_config import is_large
from lingo_ds.models.backbone.eight_bit import pack, packed_bytes, packed_entries, split
from lingo_ds.models.backbone.gathers import EightBitGather, GatherState, count_collectives
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.backbone.weight_files import WeightFiles, replace_parameters
from lingo_ds.models.ops.host_memory import Arena, return_freed_blocks
from lingo_ds.utils.errors import Mistake, UserError


def shard(
    spec: BackboneSpec,
    files: WeightFiles,
    *,
    ds_config: dict[str, Any],
    group: dist.ProcessGroup | None,
    dtype: torch.dtype,
    device: torch.device,
    eight_bit: bool,
) -> "ShardedModule":
    """Fills the skeleton: each process of `group` holds, and reads from disk, its own range of every weight.

    Args:
        spec: the backbone; its skeleton is filled in place.
        files: its weights.
        ds_config: DeepSpeed's settings, without any `auto` left.
        group: processes that share one copy; None: all.
        dtype: of the weights in memory.
        device: where they are used.
        eight_bit: whether maps are held and gathered so, see `lingo_ds.models.backbone.eight_bit`.

    Returns:
        The module with DeepSpeed's hooks on it.
    """
    module = spec.skeleton
    if device.type == "cpu" and is_large(spec.layer_parameters * dtype.itemsize):
        return_freed_blocks()
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # of an earlier backbone, perhaps of another size
    ds_config = _with_buffers(ds_config, spec, processes=dist.get_world_size(group))
    # The settings say the dtype, too: an argument here is taken for bf16 where there is no fp16.
    partitioner = deepspeed.zero.Init(config_dict_or_path=ds_config, data_parallel_group=group)
    assert partitioner.dtype == dtype, f"settings are for {partitioner.dtype}, weights are to be {dtype}"

    members, place = dist.get_world_size(group), dist.get_rank(group)
    weights = {name: weight.numel() for name, weight in module.named_parameters()}
    # Room for any weight, used for one after the other; of each at most this process's range is written to.
    room = torch.empty(max(weights.values()), dtype=dtype, device=device)
    maps = {f"{name}.weight" for name in spec.linear_maps} if eight_bit else set()
    packed = {name: packed_entries(count, members) for name, count in weights.items() if name in maps}
    packed_block = Arena(map(packed_bytes, packed.values()), torch.uint8, device)
    in_place = device.type == "cpu" and "offload_param" not in ds_config["zero_optimization"]
    plain = (_part_size(count, members) for name, count in weights.items() if name not in packed)
    block = Arena(plain, dtype, device) if in_place else None

    def own_range(name: str, old: nn.Parameter) -> nn.Parameter:
        # No broadcast: zero.Init would send every weight from the group's first process.
        whole, size = room[: old.numel()], _part_size(old.numel(), members)
        param = nn.Parameter(whole.view(old.shape), requires_grad=False)
        partitioner._convert_to_deepspeed_param(param)
        if name in packed:
            entries = packed[name]
            part = packed_block.take(packed_bytes(entries))
            _hold_eight_bit(param, part, group, partitioner)

            def read(start: int, values: Tensor) -> None:
                _fill_part(values, entries * place + start, old.numel(), name, files)

            pack(part, read)
            return param
        if block is None:
            own = whole[size * place : size * (place + 1)]
        else:
            own = _hold(param, block.take(size), size, members)
        _fill_part(own, size * place, old.numel(), name, files)
        param.partition()  # copies the range to wherever it is kept, unless it is there
        second = param.ds_secondary_tensor
        if second is not None:
            _fill_part(second, second.ds_numel * partitioner.rank_in_group, old.numel(), name, files)
        return param

    count_collectives(deepspeed.comm.comm.cdb)
    replace_parameters(module, own_range)
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


def _part_size(count: int, members: int) -> int:
    """Entries of each process's range of a weight of `count`; the last ranges may reach beyond its end."""
    return -(-count // members)


def _hold(param: nn.Parameter, own: Tensor, entries: int, members: int) -> Tensor:
    """Makes `own` what this process keeps of a weight: DeepSpeed then makes none to copy it to."""
    own.ds_numel, own.status, own.final_location = entries, PartitionedParamStatus.AVAILABLE, None
    param.ds_tensor, param.ds_numel_aligned = own, entries * members
    return own


def _hold_eight_bit(
    param: nn.Parameter, part: Tensor, group: dist.ProcessGroup | None, partitioner: deepspeed.zero.Init
) -> None:
    """Makes `part` (bytes,), yet to be filled, what this process keeps of a map, and says how to gather it.

    Maps that DeepSpeed wants at the same time come in one all-gather, large ones one by one.
    """
    values, scales = split(part)
    _hold(param, part, values.numel(), dist.get_world_size(group))
    part.ds_quant_scale = scales  # DeepSpeed gathers what has scales by itself

    def arrived(one: nn.Parameter) -> None:
        one.ds_status = ZeroParamStatus.AVAILABLE

    def gather(params: Iterable[nn.Parameter], **_: Any) -> MultipleAllGatherHandles:
        ordered = sorted(params, key=lambda one: one.ds_id)  # on all processes alike
        for one in ordered:
            one.ds_status = ZeroParamStatus.INFLIGHT
        batches = [[one] for one in ordered] if partitioner.allgather_sequential else [ordered]
        backend = deepspeed.comm.comm.cdb
        return MultipleAllGatherHandles(
            [EightBitGather(maps, group, backend=backend, arrived=arrived) for maps in batches]
        )

    param.all_gather_coalesced = gather
    free_param(param)


def _fill_part(part: Tensor, start: int, count: int, name: str, files: WeightFiles) -> None:
    """Reads a weight of `count` entries from `start` on; what is beyond its end is 0."""
    own = max(0, min(len(part), count - start))
    files.read_into(part[:own], name, min(start, count))
    part[own:].zero_()


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
        "buffer_size": _part_size(max(weight.numel() for weight in weights), processes),
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
        return self._held(lambda t: t.ds_numel if hasattr(t, "ds_quant_scale") else t.numel())

    def held_bytes(self) -> int:
        """Bytes of these entries, with the scales of those in 8 bits."""
        return self._held(lambda t: t.nbytes)

    def _held(self, size: Callable[[Tensor], int]) -> int:
        return sum(
            size(p.ds_tensor)
            + (0 if p.ds_secondary_tensor is None else size(p.ds_secondary_tensor))
            + (size(p.data) if p.ds_status == ZeroParamStatus.AVAILABLE else 0)
            for p in self.module.parameters()
        )

    def gathered_weights(self) -> list[str]:
        """Weights that are whole on this process now, though they need not be: empty between steps."""
        return [
            name
            for name, p in self.module.named_parameters()
            if p.ds_status != ZeroParamStatus.NOT_AVAILABLE and not p.ds_persist
        ]

    def start(self) -> GatherState:
        """What the next forward and backward pass must gather."""
        if self._engine.optimizer.get_param_coordinator().is_invalid_trace():
            return GatherState.RECORDING
        small = (p.ds_status for p in self.module.parameters() if p.ds_persist)
        return GatherState.FILLING if ZeroParamStatus.NOT_AVAILABLE in small else GatherState.STEADY

    def release(self) -> None:
        """After a forward without backward: gives back what was kept gathered for the backward pass."""
        self._engine.optimizer.empty_partition_cache()
