"""The one seam to DeepSpeed: a frozen module, partitioned by ZeRO stage 3 without optimizer."""

from collections.abc import Callable, Iterable, Sequence
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

from lingo_ds.backbone import eight_bit
from lingo_ds.backbone.gathers import GatheredInPlace
from lingo_ds.backbone.load import WeightFiles, fill
from lingo_ds.backbone.spec import BackboneSpec
from lingo_ds.counter import counter
from lingo_ds.errors import Mistake, UserError
from lingo_ds.heap import Block, return_freed_blocks, use_large_pages
from lingo_ds.memory import is_large
from lingo_ds.traffic import Start, packed_bytes, packed_entries


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
        ds_config: DeepSpeed's settings, without any `auto` left. `zero_quantized_weights` among them is
            answered here, see `lingo_ds.backbone.eight_bit`.
        group: processes that share one copy; None: all.
        dtype: of the weights in memory.
        device: where they are used.

    Returns:
        The module with DeepSpeed's hooks on it.
    """
    module = spec.skeleton
    if device.type == "cpu" and is_large(spec.layer_parameters * dtype.itemsize):
        return_freed_blocks()
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # of an earlier backbone, perhaps of another size
    ds_config = _with_buffers(ds_config, spec, processes=dist.get_world_size(group))
    ds_config, in_8_bits = _without_8_bits(ds_config)
    # The settings say the dtype, too: an argument here is taken for bf16 where there is no fp16.
    partitioner = deepspeed.zero.Init(config_dict_or_path=ds_config, data_parallel_group=group)
    assert partitioner.dtype == dtype, f"settings are for {partitioner.dtype}, weights are to be {dtype}"

    members, place = dist.get_world_size(group), dist.get_rank(group)
    weights = {name: weight.numel() for name, weight in module.named_parameters()}
    maps = {f"{name}.weight" for name in spec.linear_maps} if in_8_bits else set()
    # Room for any weight, used for one after the other; of each at most this process's range is written to.
    room = torch.empty(max(weights.values()), dtype=dtype, device=device)
    parts = {name: packed_entries(weights[name], members) for name in maps}
    packs = Block(map(packed_bytes, parts.values()), torch.uint8, device)
    in_place = device.type == "cpu" and "offload_param" not in ds_config["zero_optimization"]
    plain = (_part_size(count, members) for name, count in weights.items() if name not in maps)
    block = Block(plain, dtype, device) if in_place else None

    def own_range(name: str, old: nn.Parameter) -> nn.Parameter:
        # No broadcast: zero.Init would send every weight from the group's first process.
        whole, size = room[: old.numel()], _part_size(old.numel(), members)
        param = nn.Parameter(whole.view(old.shape), requires_grad=False)
        partitioner._convert_to_deepspeed_param(param)
        if name in maps:
            part = packs.take(packed_bytes(parts[name]))
            _hold_in_8_bits(param, part, group, one_by_one=partitioner.allgather_sequential)
            first, count = parts[name] * place, old.numel()
            eight_bit.pack(
                part,
                lambda start, values: _fill_part(values, first + start, count, name, files),
                device=device,
            )
            return param
        if block is None:
            own = whole[size * place : size * (place + 1)]
        else:
            own = _hold(param, block.take(size), members)
        _fill_part(own, size * place, old.numel(), name, files)
        param.partition()  # copies the range to wherever it is kept, unless it is there
        second = param.ds_secondary_tensor
        if second is not None:
            _fill_part(second, second.ds_numel * partitioner.rank_in_group, old.numel(), name, files)
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


def _part_size(count: int, members: int) -> int:
    """Entries of each process's range of a weight of `count`; the last ranges may reach beyond its end."""
    return -(-count // members)


def _hold(param: nn.Parameter, own: Tensor, members: int) -> Tensor:
    """Makes `own` the range that this process keeps of a weight: DeepSpeed then makes none to copy it to."""
    own.ds_numel, own.status, own.final_location = len(own), PartitionedParamStatus.AVAILABLE, None
    param.ds_tensor, param.ds_numel_aligned = own, len(own) * members
    return own


def _without_8_bits(ds_config: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The settings for DeepSpeed without 8-bit weights, and whether they asked for them."""
    zero = dict(ds_config["zero_optimization"])
    return ds_config | {"zero_optimization": zero}, zero.pop("zero_quantized_weights", False)


def _hold_in_8_bits(
    param: nn.Parameter, part: Tensor, group: dist.ProcessGroup | None, *, one_by_one: bool
) -> None:
    """Makes `part` (bytes,), yet to be filled, what this process keeps of a map, and says how to gather it.

    Maps that DeepSpeed wants at the same time come in one all-gather, or `one_by_one`.
    """
    values, scales = eight_bit.split(part)
    _hold(param, part, dist.get_world_size(group))
    part.ds_numel, part.ds_quant_scale = values.numel(), scales  # DeepSpeed gathers what has scales by itself

    def gather(params: Iterable[nn.Parameter], **_: Any) -> MultipleAllGatherHandles:
        ordered = sorted(params, key=lambda one: one.ds_id)  # on all processes alike
        together = [[one] for one in ordered] if one_by_one else [ordered]
        return MultipleAllGatherHandles([EightBitGather(maps, group) for maps in together])

    param.all_gather_coalesced = gather
    free_param(param)


def _fill_part(part: Tensor, start: int, count: int, name: str, files: WeightFiles) -> None:
    """Reads a weight of `count` entries from `start` on; what is beyond its end is 0."""
    own = max(0, min(len(part), count - start))
    files.read_into(part[:own], name, min(start, count))
    part[own:].zero_()


def _count_collectives() -> None:
    """Lets the counter of traffic see what DeepSpeed issues, at the one object all of it passes."""
    backend = deepspeed.comm.comm.cdb
    if "all_gather_into_tensor" in vars(backend):
        return
    gather, broadcast = backend.all_gather_into_tensor, backend.broadcast

    def counted_gather(output_tensor, input_tensor, group=None, async_op=False):
        kind = counter.add("all_gather", "weights", output_tensor.nbytes, group)
        # where several of a host's processes are in it, gloo's ring crosses the cable less often
        directly = kind.hosts in (1, kind.group)
        if async_op and directly and output_tensor.device.type == "cpu":
            return GatheredInPlace(output_tensor, input_tensor, group)
        return gather(output_tensor, input_tensor, group=group, async_op=async_op)

    def counted_broadcast(tensor, src, group=None, async_op=False):
        counter.add("broadcast", "order", tensor.nbytes, group)
        return broadcast(tensor, src, group=group, async_op=async_op)

    backend.all_gather_into_tensor, backend.broadcast = counted_gather, counted_broadcast


class EightBitGather:
    """Maps on their way in 8 bits, in one all-gather."""

    def __init__(self, maps: Sequence[nn.Parameter], group: dist.ProcessGroup | None):
        """Begins; all processes of `group` give the same maps in the same order."""
        self._maps, self._members, self._under_way = maps, dist.get_world_size(group), None
        self._parts = maps[0].ds_tensor if len(maps) == 1 else torch.cat([one.ds_tensor for one in maps])
        if self._members > 1:
            own, self._parts = self._parts, self._parts.new_empty(self._members * len(self._parts))
            gather = deepspeed.comm.comm.cdb.all_gather_into_tensor
            self._under_way = gather(self._parts, own, group=group, async_op=True)
        for param in maps:
            param.ds_status = ZeroParamStatus.INFLIGHT

    def wait(self, **_: Any) -> None:
        """Returns once every map has its values, in the compute dtype; called again it does nothing."""
        if self._parts is None:
            return
        if self._under_way is not None:
            self._under_way.wait()
        of_members = self._parts.view(self._members, -1)
        by_map = of_members.split([len(param.ds_tensor) for param in self._maps], dim=1)
        for param, parts in zip(self._maps, by_map, strict=True):
            whole = param.data.new_empty(self._members * param.ds_tensor.ds_numel)
            use_large_pages(whole)
            eight_bit.unpack(parts, whole)
            param.data = whole[: param.ds_numel].view(param.ds_shape)
            param.ds_status = ZeroParamStatus.AVAILABLE
        self._parts = None


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

    def start(self) -> Start:
        """What the next forward and backward pass must gather."""
        if self._engine.optimizer.get_param_coordinator().is_invalid_trace():
            return Start.RECORDING
        small = (p.ds_status for p in self.module.parameters() if p.ds_persist)
        return Start.FILLING if ZeroParamStatus.NOT_AVAILABLE in small else Start.STEADY

    def release(self) -> None:
        """After a forward without backward: gives back what was kept gathered for the backward pass."""
        self._engine.optimizer.empty_partition_cache()
