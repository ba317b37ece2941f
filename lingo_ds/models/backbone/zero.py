"""The one seam to DeepSpeed: partitions a frozen module by ZeRO stage 3, without an optimizer."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime.zero.partition_parameters import (
    MultipleAllGatherHandles,
    PartitionedParamStatus,
    ZeroParamStatus,
    free_param,
)
from deepspeed.utils import groups, set_z3_leaf_modules
from torch import Tensor, nn
from torch.utils import cpp_extension

from lingo_ds.models.backbone.eight_bit import pack, packed_bytes, packed_entries, split
from lingo_ds.models.backbone.gathers import EightBitGather, GatherState, count_collectives
from lingo_ds.models.backbone.partitioned import (
    PartitionedParameter,
    PartTensor,
    as_part,
    as_partitioned,
    part_size,
)
from lingo_ds.models.backbone.run_ahead import limit_run_ahead
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.backbone.weight_files import WeightFiles, replace_parameters
from lingo_ds.models.ops.host_memory import Arena
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
        dtype: dtype of the weights in memory.
        device: where the weights are used.
        eight_bit: whether maps are held and gathered in 8 bits, see `lingo_ds.models.backbone.eight_bit`.

    Returns:
        The module with DeepSpeed's hooks on it.

    Raises:
        UserError: for fp16 on most CPUs, and where weights cannot be held where the settings say.
    """
    require_dtype(dtype)
    module = spec.skeleton
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # of an earlier backbone, perhaps of another size
    ds_config = _with_buffers(ds_config, spec, processes=dist.get_world_size(group), device=device)
    # The settings say the dtype, too: an argument here is taken for bf16 where there is no fp16.
    partitioner = deepspeed.zero.Init(config_dict_or_path=ds_config, data_parallel_group=group)
    assert partitioner.dtype == dtype, f"settings are for {partitioner.dtype}, weights are to be {dtype}"
    maps = {f"{name}.weight" for name in spec.linear_maps} if eight_bit else set()
    offload = ds_config["zero_optimization"].get("offload_param", {})
    loader = _RangeLoader(module, files, partitioner, group=group, device=device, maps=maps, offload=offload)
    count_collectives(deepspeed.comm.comm.cdb)
    replace_parameters(module, loader.load)
    buffers = {name: buffer.to(device) for name, buffer in module.named_buffers()}
    set_z3_leaf_modules(module, list(spec.layer_classes))  # one gather per decoder layer
    engine, *_ = deepspeed.initialize(model=module, config=ds_config)
    _restore_buffers(module, buffers)
    if device.type == "cuda":
        limit_run_ahead(engine.optimizer.get_param_coordinator(), spec.layer_classes)
    # The first layer's weights are given back by the gradient that passes its input; without one they would
    # stay whole.
    module.get_input_embeddings().register_forward_hook(
        lambda _module, _args, output: output.requires_grad_()
    )
    return ShardedModule(module, engine)


def require_dtype(dtype: torch.dtype) -> None:
    """Checks that DeepSpeed shards weights of a dtype on this device.

    Raises:
        UserError: where it does not: fp16 on most CPUs.
    """
    if dtype not in get_accelerator().supported_dtypes():
        fix = "take bf16 or fp32, or set zero.stage to 0"
        raise UserError(Mistake("backbone.dtype", "fp16", "is not what DeepSpeed shards on this device", fix))


class _RangeLoader:
    """Partitions weight after weight, and reads this process's range of each from the files.

    Nothing is broadcast: `zero.Init` alone would send every weight from the group's first process.
    """

    def __init__(
        self,
        module: nn.Module,
        files: WeightFiles,
        partitioner: deepspeed.zero.Init,
        *,
        group: dist.ProcessGroup | None,
        device: torch.device,
        maps: Collection[str],
        offload: Mapping[str, Any],
    ):
        """Makes room for the ranges of all weights of `module`.

        Args:
            module: the skeleton.
            files: its weights.
            partitioner: DeepSpeed's, which turns parameters into partitioned ones.
            group: processes that share one copy; None: all.
            device: where the weights are used.
            maps: names of the weights that are held in 8 bits.
            offload: DeepSpeed's settings for weights that are kept elsewhere; none: they are not.

        Raises:
            UserError: where the host cannot hold them as the settings say.
        """
        self._files, self._partitioner, self._group = files, partitioner, group
        self._members, self._place = dist.get_world_size(group), dist.get_rank(group)
        dtype, weights = partitioner.dtype, {name: p.numel() for name, p in module.named_parameters()}
        self._packed = {
            name: packed_entries(weights[name], self._members) for name in weights if name in maps
        }
        self._packed_memory = Arena(map(packed_bytes, self._packed.values()), torch.uint8, device)
        # On the host ranges are read to where they stay; from GPUs and to NVMe DeepSpeed copies them, out of
        # room for any weight, used for one after the other, of which at most this process's range is written.
        offloaded = offload.get("device", "none")
        self._memory, room = None, max(weights.values())
        if offloaded == "cpu" or (offloaded == "none" and device.type == "cpu"):
            plain = [part_size(n, self._members) for name, n in weights.items() if name not in self._packed]
            locked = device.type == "cuda" and offload.get("pin_memory", False)
            self._memory = Arena(plain, dtype, torch.device("cpu"), locked=locked)
            room = 1
        self._room = torch.empty(room, dtype=dtype, device=device)

    def load(self, name: str, old: nn.Parameter) -> nn.Parameter:
        """A partitioned parameter in place of the skeleton's, with this process's range."""
        room = self._room if self._memory is not None else self._room[: old.numel()].view(old.shape)
        param = nn.Parameter(room.expand(old.shape), requires_grad=False)
        self._partitioner._convert_to_deepspeed_param(param)
        if name in self._packed:
            self._pack_range(name, as_partitioned(param), old.numel())
        else:
            self._read_range(name, as_partitioned(param), old.numel())
        return param

    def _read_range(self, name: str, param: PartitionedParameter, count: int) -> None:
        size = part_size(count, self._members)
        if self._memory is None:
            own = self._room[:count][size * self._place : size * (self._place + 1)]
        else:
            own = _hold(param, self._memory.take(size), size, self._members)
        self._files.read_part(own, name, size * self._place, count)
        param.partition()  # copies the range to wherever it is kept, unless it is there
        if (second := param.ds_secondary_tensor) is not None:
            start = second.ds_numel * self._partitioner.rank_in_group
            self._files.read_part(second, name, start, count)

    def _pack_range(self, name: str, param: PartitionedParameter, count: int) -> None:
        entries = self._packed[name]
        part = self._packed_memory.take(packed_bytes(entries))
        _hold_eight_bit(param, part, self._group, self._partitioner)

        def read(start: int, values: Tensor) -> None:
            self._files.read_part(values, name, entries * self._place + start, count)

        pack(part, read)


def _hold(param: PartitionedParameter, memory: Tensor, entries: int, members: int) -> PartTensor:
    """Makes `memory` this process's range of a weight, so that DeepSpeed makes none to copy it to."""
    own = as_part(memory)
    own.ds_numel, own.status, own.final_location = entries, PartitionedParamStatus.AVAILABLE, None
    param.ds_tensor, param.ds_numel_aligned = own, entries * members
    return own


def _hold_eight_bit(
    param: PartitionedParameter,
    memory: Tensor,
    group: dist.ProcessGroup | None,
    partitioner: deepspeed.zero.Init,
) -> None:
    """Makes `memory` (bytes,), yet to be filled, this process's part of a map, and says how to gather it.

    Maps that DeepSpeed wants at the same time come in one all-gather, large ones one by one.
    """
    values, scales = split(memory)
    part = _hold(param, memory, values.numel(), dist.get_world_size(group))
    part.ds_quant_scale = scales  # DeepSpeed gathers what has scales by itself

    def arrived(one: PartitionedParameter) -> None:
        one.ds_status = ZeroParamStatus.AVAILABLE

    def gather(params: Iterable[PartitionedParameter], **_: Any) -> MultipleAllGatherHandles:
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


def _with_buffers(
    ds_config: dict[str, Any], spec: BackboneSpec, *, processes: int, device: torch.device
) -> dict[str, Any]:
    """The settings with buffers for weights on NVMe: the largest layer's and those outside of layers.

    A buffer takes one weight's range; a layer's weights are read together.

    Raises:
        UserError: where NVMe is asked for and DeepSpeed cannot use it here.
    """
    zero = ds_config["zero_optimization"]
    offload = zero.get("offload_param", {})
    if offload.get("device") != "nvme":
        return ds_config
    require_nvme(device)
    layers = [module for module in spec.skeleton.modules() if isinstance(module, spec.layer_classes)]
    inside = [len(list(layer.parameters())) for layer in layers]
    weights = list(spec.skeleton.parameters())
    buffers = {
        "buffer_count": max(inside) + len(weights) - sum(inside),
        "buffer_size": part_size(max(weight.numel() for weight in weights), processes),
    }
    return ds_config | {"zero_optimization": zero | {"offload_param": buffers | offload}}


def require_nvme(device: torch.device) -> None:
    """Checks that DeepSpeed's reader of NVMe can be built on this host, for a GPU or a CPU.

    Raises:
        UserError: where it cannot.
    """
    lacks = None
    if not AsyncIOBuilder().is_compatible():
        lacks = "libaio with its headers, and a C++ compiler", "install libaio-dev and g++"
    elif device.type == "cuda" and torch.version.hip is None and cpp_extension.CUDA_HOME is None:
        lacks = "the CUDA toolkit", f"install that of CUDA {torch.version.cuda} and set CUDA_HOME"
    if lacks:
        rule, fix = (
            f"needs {lacks[0]}, of which DeepSpeed's reader is built",
            f"{lacks[1]}, or take zero3_offload",
        )
        raise UserError(Mistake("zero.profile", "offload_param.device: nvme", rule, fix))


def _restore_buffers(module: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Undoes DeepSpeed's cast of every buffer to the compute dtype: rotary frequencies need their fp32."""
    for name, value in buffers.items():
        owner, _, key = name.rpartition(".")
        module.get_submodule(owner)._buffers[key] = value


class ShardedModule:
    """A partitioned module: between forward and backward passes each process holds only its own ranges."""

    def __init__(self, module: nn.Module, engine: deepspeed.DeepSpeedEngine):
        self.module, self._engine = module, engine

    def held_entries(self) -> int:
        """Number of entries that this process holds now: its ranges, and whatever is gathered."""
        return self._held(lambda t: as_part(t).ds_numel if hasattr(t, "ds_quant_scale") else t.numel())

    def held_bytes(self) -> int:
        """Bytes of these entries, with the scales of those in 8 bits."""
        return self._held(lambda t: t.nbytes)

    def _held(self, size: Callable[[Tensor], int]) -> int:
        return sum(
            size(p.ds_tensor)
            + (0 if p.ds_secondary_tensor is None else size(p.ds_secondary_tensor))
            + (size(p.data) if p.ds_status == ZeroParamStatus.AVAILABLE else 0)
            for p in map(as_partitioned, self.module.parameters())
        )

    def gathered_weights(self) -> list[str]:
        """Weights that are whole on this process now, though they need not be: empty between steps."""
        return [
            name
            for name, param in self.module.named_parameters()
            if (p := as_partitioned(param)).ds_status != ZeroParamStatus.NOT_AVAILABLE and not p.ds_persist
        ]

    def start(self) -> GatherState:
        """The state in which the next forward and backward pass find the weights."""
        if self._engine.optimizer.get_param_coordinator().is_invalid_trace():
            return GatherState.RECORDING
        small = (p.ds_status for p in map(as_partitioned, self.module.parameters()) if p.ds_persist)
        return GatherState.FILLING if ZeroParamStatus.NOT_AVAILABLE in small else GatherState.STEADY

    def release(self) -> None:
        """Frees weights that a forward gathered for a backward pass which does not come."""
        self._engine.optimizer.empty_partition_cache()
