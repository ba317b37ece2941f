"""Which process of the job is lost or hangs: it is named, and no other waits for it for ever.

Kept on purpose: the time-outs of gloo and nccl end a job after minutes without naming the process at fault.

A thread on every process publishes its heartbeat in the job's store. The first process of each host reads
the heartbeats of all others, the rest only that of global rank 0, which keeps the store. What they find is
written to the store too, and ends every process. A second thread needs no store: it notices when the store no
longer answers, and when the launcher is gone.
"""

import contextlib
import faulthandler
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple, NoReturn

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from lingo_ds.distributed.launcher_watch import LauncherWatch, is_running
from lingo_ds.distributed.launchers import reports_first
from lingo_ds.distributed.process_group import DistEnv, own_connection
from lingo_ds.utils.errors import LoneError, Mistake, UserError

PERIOD = 1.0
"""Seconds between two heartbeats."""

SILENCE = 20.0
"""Seconds without a heartbeat after which a process counts as lost."""

_watchdog: "Watchdog | None" = None
"""The watchdog of the innermost `watching`, for `judging` and `beat`."""


class Heartbeat(NamedTuple):
    """What a process publishes of itself.

    Attributes:
        tick: number of the heartbeat; it shows only that the process is there.
        beats: signs of progress so far.
        limit: seconds without progress that count as hanging; None: standing still is no fault now.
        done: whether the process has finished its part and needs nobody any more.
        group: number of the group with whose processes alone it works.
        pid, host, space: process id, and the host and the namespace of process ids in which it is valid.
    """

    tick: int
    beats: int
    limit: float | None
    done: bool
    group: int
    pid: int
    host: str
    space: int


class PeerState(NamedTuple):
    """The last new heartbeat of another process; when it came, and since when it stands still (monotonic)."""

    heartbeat: Heartbeat
    alive_since: float
    still_since: float


class PeerWatch:
    """This process's heartbeat, and its view of the others', in the job's store.

    Attributes:
        timeout: seconds without progress after which this process's group counts as hung; None: never.
        group: number of the group that this process works with; 0 where all work together.
        beats: signs of progress so far.
    """

    def __init__(self, env: DistEnv, store: Store):
        """Publishes the first heartbeat; `store` is a connection that nobody else waits on."""
        self._env, self._store = env, store
        self._place = socket.gethostname(), _pid_namespace()
        self._seen: dict[int, PeerState] = {}
        self._store_gone: float | None = None
        self._tick = self.beats = self.group = 0
        self.timeout: float | None = None
        self._done = self._gave_up = False
        self._publish()
        self._answered = time.monotonic()
        # The process that keeps the store: it cannot be asked once it is lost.
        self._seen[0] = PeerState(self._heartbeat_of(0), self._answered, self._answered)

    @property
    def period(self) -> float:
        """Seconds between two heartbeats, longer in a large job: all go through one store."""
        return max(PERIOD, self._env.world_size / 64)

    def finish(self) -> None:
        """Publishes that this process needs nobody any more."""
        self._done = True
        with contextlib.suppress(dist.DistError, RuntimeError):
            self._publish()

    def give_up(self, mistake: str) -> None:
        """Ends all others, which may wait for this process in a collective: it ends with a user's mistake."""
        self._gave_up = True
        with contextlib.suppress(dist.DistError, RuntimeError):
            self._store.compare_set("lingo_ds/lost", "", mistake)
        if self._env.is_main:
            time.sleep(3 * self.period)  # the store ends with this process: the others read it first

    def exchange(self, ended: threading.Event) -> None:
        """Publishes this process's heartbeat and reads the others'; ends the process where one is lost."""
        self._tick += 1
        try:
            self._publish()
            lost = self._verdict() or self._find_lost()
        except (dist.DistError, RuntimeError):  # the store is global rank 0's
            self._store_gone = self._store_gone or time.monotonic()
            return
        self._answered = time.monotonic()
        if lost and not self._gave_up and not ended.is_set():
            self._end(lost)

    def check_store(self) -> None:
        """Ends the process where the store no longer answers, without asking it."""
        now = time.monotonic()
        if self._store_gone and now > self._store_gone + 2 * PERIOD:
            self._end(self._describe(0, "has ended or was killed"))
        if now > self._answered + SILENCE:
            self._store_gone = now
            self._end(self._describe(0, f"has sent no heartbeat for {SILENCE:.0f} s"))

    def _publish(self) -> None:
        heartbeat = Heartbeat(
            self._tick, self.beats, self.timeout, self._done, self.group, os.getpid(), *self._place
        )
        self._store.set(f"lingo_ds/alive/{self._env.global_rank}", json.dumps(heartbeat))

    def _heartbeat_of(self, rank: int) -> Heartbeat:
        return Heartbeat(*json.loads(self._store.get(f"lingo_ds/alive/{rank}")))

    def _find_lost(self) -> str | None:
        """Describes the first process that is lost, or for which all wait; None while all is well."""
        now, ranks = time.monotonic(), range(self._env.world_size if self._env.local_rank == 0 else 1)
        keys = [f"lingo_ds/alive/{rank}" for rank in ranks]
        if len(self._seen) < len(keys) and not self._store.check(keys):
            return None  # someone is not here yet
        for rank, text in zip(ranks, self._store.multi_get(keys), strict=True):
            self._note(rank, Heartbeat(*json.loads(text)), now)
        for rank, (heartbeat, alive_since, _) in self._seen.items():
            if heartbeat.done:
                continue
            if (heartbeat.host, heartbeat.space) == self._place and not is_running(heartbeat.pid):
                if self._heartbeat_of(rank).done:  # published after it was read above
                    continue
                return self._describe(rank, "has ended or was killed")
            if now > alive_since + SILENCE:
                return self._describe(rank, f"has sent no heartbeat for {SILENCE:.0f} s")
        return self._find_hanging(now) if len(self._seen) == self._env.world_size else None

    def _note(self, rank: int, heartbeat: Heartbeat, now: float) -> None:
        before = self._seen.get(rank)
        if before is None or heartbeat._replace(tick=before.heartbeat.tick) != before.heartbeat:
            self._seen[rank] = PeerState(heartbeat, now, now)
        elif heartbeat != before.heartbeat:
            self._seen[rank] = PeerState(heartbeat, now, before.still_since)

    def _find_hanging(self, now: float) -> str | None:
        """Describes the process for which the others of its group wait; None while all groups are well."""
        groups: dict[int, dict[int, PeerState]] = {}
        for rank, seen in self._seen.items():
            if not seen.heartbeat.done:
                groups.setdefault(seen.heartbeat.group, {})[rank] = seen
        return next((words for group in groups.values() if (words := self._hanging_in(group, now))), None)

    def _hanging_in(self, group: dict[int, PeerState], now: float) -> str | None:
        limit = 0.0
        for heartbeat, _, still_since in group.values():
            if heartbeat.limit is None or now <= still_since + heartbeat.limit:
                return None
            limit = heartbeat.limit
        beats = {rank: seen.heartbeat.beats for rank, seen in group.items()}
        behind = [rank for rank in beats if beats[rank] < max(beats.values())]
        duration = f"for {limit:.0f} s (train.timeout)"
        if behind:
            return self._describe(behind[0], f"hangs, and the others have waited for it {duration}")
        who = "and all others have" if len(group) > 1 else "has"
        return self._describe(min(beats), f"{who} made no progress {duration}")

    def _verdict(self) -> str | None:
        """What another process found; None so far."""
        key = "lingo_ds/lost"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _describe(self, rank: int, problem: str) -> str:
        seen = self._seen.get(rank)
        where = f"{seen.heartbeat.host}, pid {seen.heartbeat.pid}" if seen else "unknown host"
        fix = "see its own output; run the same command again to resume from the last checkpoint"
        return str(Mistake(f"process {rank} of {self._env.world_size}", where, problem, fix))

    def _end(self, lost: str) -> None:
        """Ends this process: its main thread may wait in a collective for ever."""
        if not self._store_gone:
            with contextlib.suppress(dist.DistError, RuntimeError):
                self._store.compare_set("lingo_ds/lost", "", lost)
                lost = self._store.get("lingo_ds/lost").decode()
        if lost.startswith("error: "):  # the user's mistake, which another process gave up with
            if reports_first(lost, os.environ):
                print(lost, file=sys.stderr, flush=True)  # noqa: T201
            self._leave(2)
        if lost.startswith(f"process {self._env.global_rank} of"):
            faulthandler.dump_traceback(sys.stderr)
        if self._env.local_rank == 0 or self._store_gone:
            print(f"error: {lost}", file=sys.stderr, flush=True)  # noqa: T201  the log may be locked
        self._leave(1)

    def _leave(self, status: int) -> NoReturn:
        if self._env.is_main:
            time.sleep(3 * PERIOD)  # the store ends with this process: the others read the verdict first
        os._exit(status)


class Watchdog:
    """The two threads of one process: `peers` is None where there are no others."""

    def __init__(self, peers: PeerWatch | None):
        self.peers = peers
        self._launcher = LauncherWatch()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._guard, name="watchdog", daemon=True)]
        if peers is not None:
            exchange = threading.Thread(target=self._exchange, args=(peers,), name="heartbeat", daemon=True)
            self._threads.append(exchange)

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Publishes that this process has finished, and ends the threads."""
        if self.peers is not None:
            self.peers.finish()
        self._ended.set()
        for thread in self._threads:
            thread.join(SILENCE)

    def _guard(self) -> None:
        """Checks what can be seen without the store, whose process may be gone or stopped."""
        while not self._ended.wait(PERIOD):
            self._launcher.check()
            if self.peers is not None and not self._ended.is_set():
                self.peers.check_store()

    def _exchange(self, peers: PeerWatch) -> None:
        while not self._ended.wait(peers.period):
            peers.exchange(self._ended)


@contextlib.contextmanager
def watching(env: DistEnv) -> Iterator[None]:
    """Watches over the job while inside; an error that another process's end caused is reported as that.

    Call it in the process group that all processes have joined.
    """
    global _watchdog
    peers = PeerWatch(env, own_connection(timedelta(seconds=SILENCE))) if env.world_size > 1 else None
    before, watchdog = _watchdog, Watchdog(peers)
    watchdog.start()
    _watchdog = watchdog
    try:
        yield
    except UserError as error:
        if peers is not None and isinstance(error, LoneError):
            peers.give_up(str(error))
        raise
    except Exception as error:
        if peers is not None and _comes_from_collective(error):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, who knows no more than we do
            time.sleep(SILENCE + 5 * PERIOD)  # long enough for the thread to find who is lost, and end this
        raise
    finally:
        _watchdog = before
        watchdog.stop()


@contextlib.contextmanager
def judging(timeout: float) -> Iterator[None]:
    """While inside, standing still for longer than `timeout` seconds is a fault."""
    peers = _watchdog.peers if _watchdog is not None else None
    if peers is not None:
        peers.timeout = timeout
    try:
        yield
    finally:
        if peers is not None:
            peers.timeout = None


def join_group(number: int) -> None:
    """Notes that this process works with those of one group alone, see `process_group.divided`."""
    if _watchdog is not None and _watchdog.peers is not None:
        _watchdog.peers.group = number


def beat() -> None:
    """Notes that this process made progress; call it before whatever others may have to wait for."""
    if _watchdog is not None and _watchdog.peers is not None:
        _watchdog.peers.beats += 1


def _comes_from_collective(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or bool(
        re.search(r"gloo|nccl|connection|peer|socket|store", str(error), re.IGNORECASE)
    )


def _pid_namespace() -> int:
    """The namespace of this process's id: containers of one host have their own."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
