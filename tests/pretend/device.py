"""Pretend cards in this process: import it before torch. Arithmetic and memory are the host's.

It finds tensors of two devices in one operator, arrays made of a card's tensors, hooks in autograd's own
threads, and what kernels and nccl ask of their arguments. It cannot find what only a card has: speed, races
between streams, the rounding of its kernels. `device.cpp` is the device itself; here are torch.cuda's
functions, which the CPU build of torch has no code for.
"""

import contextlib
import ctypes
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakSet

LIBRARY = "PRETEND_LIBRARY"
"""Environment variable that holds the path of the compiled device."""

_VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")
COUNT = len(_VISIBLE)
os.environ["PRETEND_DEVICES"] = str(COUNT)

_compiled = ctypes.CDLL(os.environ[LIBRARY])

import torch  # noqa: E402  the device must be there first

from tests.pretend.runtime import Runtime  # noqa: E402


@dataclass
class Card:
    """What the cards of this process are; tests change it."""

    name: str = "NVIDIA H200"
    capability: tuple[int, int] = (9, 0)
    memory: int = 141 * 10**9
    taken: int = 0  # of it by other jobs
    reserved: int = 0  # of it by torch in this process
    slow: bool = False  # whether nothing is finished before the host has waited for it
    nccl: tuple[int, ...] = (2, 27, 3)


CARD = Card()

observers: list[Callable[[str], None]] = []
"""Called with the name of each wait that Python asks for: of a stream, an event, the whole device."""


_sync_debug = ["default"]


def _wait(what: str) -> None:
    for observer in observers:
        observer(what)
    if _sync_debug[0] == "warn":
        warnings.warn("called a synchronizing CUDA operation", stacklevel=3)


_streams: "WeakSet[Stream]" = WeakSet()


class Stream:
    """A queue of kernels: all finished at once, or on a slow card when the host has waited for them.

    Attributes:
        recorded: marks in the queue so far.
        finished: of them those that the host knows to be passed.
    """

    def __init__(self, *_: Any, **__: Any):
        self.device = torch.device("cuda", _compiled.pretend_current_device())
        self.cuda_stream = self.stream_id = self.device_index = 0
        self.device_type = 1
        self.recorded = self.finished = 0
        self._behind: list[tuple[int, Stream, int]] = []
        _streams.add(self)

    def finish(self, mark: int) -> None:
        """The host knows that all up to a mark is finished, and with it what this queue has waited for."""
        self.finished = max(self.finished, mark)
        passed = [one for one in self._behind if one[0] <= mark]
        self._behind = [one for one in self._behind if one[0] > mark]
        for _, other, others_mark in passed:
            other.finish(others_mark)

    def synchronize(self) -> None:
        _wait("Stream.synchronize")
        self.finish_all()

    def finish_all(self) -> None:
        """The host knows that all is finished."""
        self.recorded += 1
        self.finish(self.recorded)

    def wait_stream(self, other: "Stream") -> None:
        if CARD.slow:
            self._behind.append((self.recorded + 1, other, other.recorded))

    def wait_event(self, event: "Event") -> None:
        if CARD.slow:
            self._behind.append((self.recorded + 1, event.stream, event.mark))

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return not CARD.slow or self.finished == self.recorded


class Event:
    """A mark in a queue, which is passed when its queue is."""

    def __init__(self, *_: Any, **__: Any):
        self.stream, self.mark = _current[0], 0

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or _current[0]
        self.stream.recorded += 1
        self.mark = self.stream.recorded

    def wait(self, stream: Stream | None = None) -> None:
        (stream or _current[0]).wait_event(self)

    def query(self) -> bool:
        return not CARD.slow or self.mark <= self.stream.finished

    def synchronize(self) -> None:
        _wait("Event.synchronize")
        self.stream.finish(self.mark)

    def elapsed_time(self, other: "Event") -> float:
        return 0.0


_DEFAULT = Stream()
_current = [_DEFAULT]


@contextlib.contextmanager
def _stream(stream: Stream | None) -> Iterator[None]:
    before, _current[0] = _current[0], stream or _current[0]
    try:
        yield
    finally:
        _current[0] = before


def _set_device(device: Any) -> None:
    index = device if isinstance(device, int) else torch.device(device).index
    if index is not None:
        assert index < COUNT, f"CUDA error: invalid device ordinal {index}"
        _compiled.pretend_set_device(index)


def _exchange_device(index: int) -> int:
    before = _compiled.pretend_current_device()
    if index >= 0:
        _set_device(index)
    return before


def _properties(device: Any = None) -> SimpleNamespace:
    major, minor = CARD.capability
    index = device if isinstance(device, int) else torch.device(device or "cuda").index
    return SimpleNamespace(
        name=CARD.name,
        total_memory=CARD.memory,
        multi_processor_count=132,
        major=major,
        minor=minor,
        uuid=f"GPU-{_VISIBLE[index or 0]}",
        gcnArchName="",
        is_integrated=0,
    )


def _is_bf16_supported(including_emulation: bool = True) -> bool:
    return including_emulation or CARD.capability >= (8, 0)


def _synchronize(*_: Any) -> None:
    _wait("torch.cuda.synchronize")
    for stream in _streams:
        stream.finish_all()


RUNTIME = Runtime(_compiled)


def _returning(value: Any) -> Callable[..., Any]:
    """A new function each time: torch.compile takes one under two names for a mistake."""
    return lambda *_, **__: value


_REPLACED = {
    "is_initialized": _returning(True),
    "is_available": _returning(True),
    "device_count": _returning(COUNT),
    "current_device": lambda: _compiled.pretend_current_device(),
    "set_device": _set_device,
    "_exchange_device": _exchange_device,
    "_maybe_exchange_device": lambda index: _exchange_device(index),
    "get_device_properties": _properties,
    "get_device_name": lambda *_: CARD.name,
    "get_device_capability": lambda *_: CARD.capability,
    "is_bf16_supported": _is_bf16_supported,
    "mem_get_info": lambda *_: (CARD.memory - CARD.taken - CARD.reserved, CARD.memory),
    "memory_reserved": lambda *_: CARD.reserved,
    "memory_stats": _returning({}),
    "cudart": _returning(RUNTIME),
    "initial_seed": _returning(0),
    "get_rng_state": lambda *_, **__: torch.get_rng_state(),
    "set_rng_state": lambda state, *_, **__: torch.set_rng_state(state),
    "get_rng_state_all": lambda: [torch.get_rng_state()],
    "Stream": Stream,
    "Event": Event,
    "stream": _stream,
    "current_stream": lambda *_: _current[0],
    "default_stream": lambda *_: _DEFAULT,
    "synchronize": _synchronize,
    "set_sync_debug_mode": lambda mode: _sync_debug.__setitem__(0, mode),
}
_IDLE = ("_lazy_init", "init", "empty_cache", "reset_peak_memory_stats", "manual_seed", "manual_seed_all")
_REPLACED |= {name: _returning(None) for name in (*_IDLE, "set_rng_state_all", "set_stream")}
_EMPTY = ("memory_allocated", "max_memory_allocated", "max_memory_reserved")
_REPLACED |= {name: _returning(0) for name in _EMPTY}
for _name, _value in _REPLACED.items():
    setattr(torch.cuda, _name, _value)


class Freed(NamedTuple):
    """Memory that was freed on a slow card: it can be used again once a stream has passed its next mark."""

    size: int
    stream: Stream
    mark: int

    @property
    def in_use(self) -> bool:
        """Whether the stream may still use it, as far as the host knows."""
        return self.mark > self.stream.finished


freed: list[Freed] = []
"""What was freed on a slow card after other streams than its own had used it, in bytes."""


def _record_stream(self: torch.Tensor, stream: Stream) -> None:
    """The tensor is freed next: DeepSpeed calls this nowhere else."""
    if CARD.slow:
        freed.append(Freed(self.nbytes, stream, stream.recorded + 1))


torch.Tensor.record_stream = _record_stream

import torch.cuda.nccl  # noqa: E402
import torch.cuda.nvtx  # noqa: E402

torch.cuda.nccl.version = lambda: CARD.nccl
torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop = _returning(None), _returning(None)

from tests.pretend import flash_kernel, nccl, norm_kernel  # noqa: E402, F401  they take the place of the real ones

# What Triton's interpreter asks for: a stream's number, and storages copied to the host and back.
torch._C._cuda_getCurrentRawStream = _returning(0)
_to_host, _copy = torch.UntypedStorage.cpu, torch.UntypedStorage.copy_


def _storage_to_host(self: torch.UntypedStorage) -> torch.UntypedStorage:
    if self.device.type != "cuda":
        return _to_host(self)
    out = torch.UntypedStorage(self.nbytes())
    ctypes.memmove(out.data_ptr(), self.data_ptr(), self.nbytes())
    return out


def _copy_storage(
    self: torch.UntypedStorage, source: torch.UntypedStorage, non_blocking: bool | None = None
) -> torch.UntypedStorage:
    if "cuda" not in (self.device.type, source.device.type):
        return _copy(self, source, non_blocking)
    ctypes.memmove(self.data_ptr(), source.data_ptr(), self.nbytes())
    return self


torch.UntypedStorage.cpu, torch.UntypedStorage.copy_ = _storage_to_host, _copy_storage
