"""Who of the job is still alive: a process that is lost or hangs is named, and none waits for it for ever.

A thread on every process leaves a sign of life in the job's store; on each host the first one's looks at all
others, the rest at global rank 0, which keeps the store. What they find is left there too, and ends every
process. A second thread sees the store fall silent, and the launcher end, whose processes nobody needs then.
"""

import contextlib
import faulthandler
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

import psutil
import torch.distributed as dist

from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds between two signs of life."""

SILENCE = 20.0
"""Seconds without a sign after which a process counts as lost."""

GRACE = 40.0
"""Seconds that a process has to end well once its launcher is gone."""

LAUNCHERS = (
    "deepspeed", "torchrun", "torch.distributed", "mpirun", "mpiexec", "orted", "prted", "srun", "slurmstepd",
)  # fmt: skip

_watchdog: "Watchdog | None" = None


class Heartbeat(NamedTuple):
    """What a process says of itself: `beats` counts its progress, `tick` only that it is there.

    `host` and `space`, that of process ids on it, say where its `pid` can be looked for.
    """

    tick: int
    beats: int
    judged: bool
    done: bool
    pid: int
    host: str
    space: int


class PeerState(NamedTuple):
    """The last new sign of another process, and when it came (monotonic seconds)."""

    sign: Heartbeat
    alive_since: float
    still_since: float


class Watchdog:
    """One process's part in watching over the job.

    Attributes:
        timeout: seconds without progress anywhere after which the job counts as hung; None: never.
        beats: signs of progress so far.
    """

    def __init__(self, env: DistEnv, store: dist.Store | None):
        """`store` is the job's; None where there are no others to look at."""
        self._env, self._store = env, store
        self._place = socket.gethostname(), _pid_space()
        self._seen: dict[int, PeerState] = {}
        self._period = max(PERIOD, env.world_size / 64)
        self._launchers = _launchers()
        self._launcher_gone: float | None = None
        self._store_gone: float | None = None
        self._tick = self.beats = 0
        self.timeout: float | None = None
        self._done = False
        self._ended = threading.Event()
        self._answered = time.monotonic()
        self._threads = [
            threading.Thread(target=run, name="liveness", daemon=True)
            for run in (self._guard, *([self._look] if store else []))
        ]

    def start(self) -> None:
        """Starts the threads."""
        self._publish()
        self._answered = time.monotonic()
        if self._store is not None:  # who keeps the store: it cannot be asked once it is lost
            self._seen[0] = PeerState(self._heartbeat_of(0), self._answered, self._answered)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Says that this process needs nobody any more, and ends the threads."""
        self._done = True
        with contextlib.suppress(dist.DistError, RuntimeError):
            self._publish()
        self._ended.set()
        for thread in self._threads:
            thread.join(SILENCE)

    def _guard(self) -> None:
        """Looks at what can be seen without the store, whose process may be gone or stopped."""
        while not self._ended.wait(PERIOD):
            self._look_at_launcher()
            if self._store is None or self._ended.is_set():
                continue
            now = time.monotonic()
            if self._store_gone and now > self._store_gone + 2 * PERIOD:
                self._end(self._words(0, "has ended or was killed"))
            if now > self._answered + SILENCE:
                self._store_gone = now
                self._end(self._words(0, f"has given no sign of life for {SILENCE:.0f} s"))

    def _look(self) -> None:
        """Leaves signs of life in the store and looks at the others'."""
        while not self._ended.wait(self._period):
            self._tick += 1
            try:
                self._publish()
                lost = self._verdict() or self._look_around()
            except (dist.DistError, RuntimeError):  # the store is global rank 0's
                self._store_gone = self._store_gone or time.monotonic()
                continue
            self._answered = time.monotonic()
            if lost and not self._ended.is_set():
                self._end(lost)

    def _publish(self) -> None:
        if self._store is not None:
            judged = self.timeout is not None
            sign = Heartbeat(self._tick, self.beats, judged, self._done, os.getpid(), *self._place)
            self._store.set(f"lingo_ds/alive/{self._env.global_rank}", json.dumps(sign))

    def _look_around(self) -> str | None:
        """Words on the first process that is lost, or that all wait for; None while all is well."""
        now, ranks = time.monotonic(), range(self._env.world_size if self._env.local_rank == 0 else 1)
        keys = [f"lingo_ds/alive/{rank}" for rank in ranks]
        if len(self._seen) < len(keys) and not self._store.check(keys):
            return None  # someone is not here yet
        for rank, text in zip(ranks, self._store.multi_get(keys), strict=True):
            sign = Heartbeat(*json.loads(text))
            before = self._seen.get(rank)
            if before is None or sign.beats != before.sign.beats:
                self._seen[rank] = PeerState(sign, now, now)
            elif sign != before.sign:
                self._seen[rank] = PeerState(sign, now, before.still_since)
        for rank, (sign, alive_since, _) in self._seen.items():
            if sign.done:
                continue
            if (sign.host, sign.space) == self._place and not _runs(sign.pid):
                if self._heartbeat_of(rank).done:  # said after we looked
                    continue
                return self._words(rank, "has ended or was killed")
            if now > alive_since + SILENCE:
                return self._words(rank, f"has given no sign of life for {SILENCE:.0f} s")
        return self._hanging(now) if len(self._seen) == self._env.world_size else None

    def _heartbeat_of(self, rank: int) -> Heartbeat:
        return Heartbeat(*json.loads(self._store.get(f"lingo_ds/alive/{rank}")))

    def _hanging(self, now: float) -> str | None:
        if self.timeout is None:
            return None
        running = {rank: seen for rank, seen in self._seen.items() if not seen.sign.done}
        if not all(seen.sign.judged and now > seen.still_since + self.timeout for seen in running.values()):
            return None
        beats = {rank: seen.sign.beats for rank, seen in running.items()}
        behind = [rank for rank in beats if beats[rank] < max(beats.values())]
        what = f"for {self.timeout:.0f} s (train.timeout)"
        if not behind:
            return self._words(min(beats), f"and all others have not moved {what}")
        return self._words(behind[0], f"hangs, and the others have waited for it {what}")

    def _verdict(self) -> str | None:
        key = "lingo_ds/lost"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _words(self, rank: int, what: str) -> str:
        seen = self._seen.get(rank)
        where = f"{seen.sign.host}, pid {seen.sign.pid}" if seen else "unknown host"
        fix = "see its own output; the same command goes on from the last checkpoint"
        return str(Mistake(f"process {rank} of {self._env.world_size}", where, what, fix))

    def _end(self, lost: str) -> None:
        """Ends this process: its main thread may wait in a collective for ever."""
        if not self._store_gone:
            with contextlib.suppress(dist.DistError, RuntimeError):
                self._store.compare_set("lingo_ds/lost", "", lost)
                lost = self._store.get("lingo_ds/lost").decode()
        if lost.startswith(f"process {self._env.global_rank} of"):
            faulthandler.dump_traceback(sys.stderr)
        if self._env.local_rank == 0 or self._store_gone:
            print(f"error: {lost}", file=sys.stderr, flush=True)  # noqa: T201
        if self._env.is_main:
            time.sleep(3 * PERIOD)  # the store ends with this process: the others read the verdict first
        os._exit(1)

    def _look_at_launcher(self) -> None:
        """Once the launcher is gone, asks this process to end as by SIGTERM; ends it if that does not do."""
        if self._launcher_gone is None:
            if all(_runs(process.pid) and process.is_running() for process in self._launchers):
                return
            self._launcher_gone = time.monotonic()
            logger.error("the launcher is gone: this process ends after the step")
            os.kill(os.getpid(), signal.SIGTERM)
        elif time.monotonic() > self._launcher_gone + GRACE:
            os._exit(1)


@contextlib.contextmanager
def watching(env: DistEnv) -> Iterator[None]:
    """Watches over the job while inside; an error that another process's end caused is told as that.

    Call it in the process group that all processes have joined.
    """
    global _watchdog
    store = None
    if env.world_size > 1:
        store = dist.distributed_c10d._get_default_store().clone()  # a connection that nobody else waits on
        store.set_timeout(timedelta(seconds=SILENCE))
    before, watch = _watchdog, Watchdog(env, store)
    watch.start()
    _watchdog = watch
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if store is not None and _of_a_collective(error):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, who knows no more than we do
            time.sleep(SILENCE + 5 * PERIOD)  # long enough for the thread to find who is lost, and end this
        raise
    finally:
        _watchdog = before
        watch.stop()


@contextlib.contextmanager
def judging(timeout: float) -> Iterator[None]:
    """While inside, standing still for longer than `timeout` seconds is a fault."""
    watch = _watchdog
    if watch is not None:
        watch.timeout = timeout
    try:
        yield
    finally:
        if watch is not None:
            watch.timeout = None


def beat() -> None:
    """Notes that this process got on; call it before whatever others may have to wait for."""
    if _watchdog is not None:
        _watchdog.beats += 1


def _of_a_collective(error: Exception) -> bool:
    said = str(error)
    return isinstance(error, dist.DistError) or bool(
        re.search(r"gloo|nccl|connection|peer|socket|store", said, re.IGNORECASE)
    )


def _pid_space() -> int:
    """Names the space of process ids that this process is in: containers of one host have their own."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _launchers() -> list[psutil.Process]:
    """The launcher's processes right above this one."""
    found = []
    for process in psutil.Process().parents():
        try:
            words = [os.path.basename(word) for word in process.cmdline()]
        except psutil.Error:
            break
        if not any(word.startswith(LAUNCHERS) for word in words[:4]):
            break
        found.append(process)
    return found
