"""Runs one hostile case in process and checks the contract: success or status 2 in clear lines, no harm.

While a case runs, Python's audit events are tripwires: a write outside the places that are the program's own,
an unpickled object, code from the case's folder, a started process or a connection ends it at once.
"""

import contextlib
import faulthandler
import hashlib
import io
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from hypothesis.strategies import SearchStrategy

import lingo_ds.commands.train  # noqa: F401  (the verbs import it, and it does much at its first import)
from lingo_ds.commands.cli import main
from lingo_ds.utils.errors import UserError

SECONDS = 20
"""Wall time that a case may take: a hundred times what one takes on an idle machine."""

MEMORY = 2 << 30
"""Bytes that a case may ask for beyond what the process has."""

MOST_LINES, LONGEST_LINE = 100, 1500
MISTAKE = re.compile(r"error: .+: .+: .+: .+")
LOGGED = re.compile(r"\d\d:\d\d:\d\d (INFO|WARNING) ")

FOLDER, FIFO, LOOP, ENDLESS, DANGLING, MISSING = "folder", "fifo", "loop", "endless", "dangling", "missing"
SPECIAL = (FOLDER, FIFO, LOOP, ENDLESS, DANGLING, MISSING)
"""What may stand where a file is expected."""


class Blob(bytes):
    """Bytes that a failing test shows in a line rather than a screen."""

    def __repr__(self) -> str:
        shown = bytes(self[:1000])
        return repr(shown) if len(self) <= 1000 else f"{shown!r} and {len(self) - 1000} more bytes"


class Case(NamedTuple):
    """One hostile input.

    Attributes:
        files: what differs from the good input: bytes, or one of `SPECIAL`, by path inside the folder.
        settings: overrides on the command line.
    """

    files: dict[str, bytes | str]
    settings: tuple[str, ...] = ()

    def __repr__(self) -> str:
        files = {name: c if isinstance(c, str) else Blob(c) for name, c in self.files.items()}
        return f"Case({files!r}, {tuple(Blob(word.encode(errors='replace')) for word in self.settings)!r})"


class Place(NamedTuple):
    """Where a case lives.

    Attributes:
        inputs: the case's files; nothing may be changed there.
        work: the working directory, deep enough for `../../x` to stay inside the case.
        good: good inputs of every kind, shared by all cases.
    """

    inputs: Path
    work: Path
    good: Path


class Kind(NamedTuple):
    """One kind of input: how its cases look, and how the program meets them.

    Attributes:
        cases: strategy of the hostile cases.
        base: folder of `Place.good` that a case starts from; None: from nothing.
        run: takes the program through the case and returns its exit status; 0 is success.
        share: of all cases, as a weight.
    """

    cases: SearchStrategy[Case]
    base: str | None
    run: Callable[[Case, Place], int]
    share: int


class Broken(AssertionError):
    """The contract was broken; the message says how."""


class Tripped(BaseException):
    """Raised inside the program, past its handlers: a tripwire was touched, or time is over."""


def status_of(work: Callable[[], Any]) -> int:
    """The exit status of what has no verb of its own, with mistakes on stderr, as the entry points do it."""
    try:
        work()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def plan(config: Path, *settings: str) -> int:
    """Status of `lingo-ds plan`; argparse's own exit is one."""
    try:
        return main(["plan", "--config", str(config), *settings])
    except SystemExit as end:
        return int(end.code or 0)


def endure(kind: Kind, case: Case, *, good: Path, cache: Path) -> int:
    """Writes the case, runs it, and checks everything that must hold.

    Returns:
        The status: 0 or 2.

    Raises:
        Broken: where the contract does not hold.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as root:
        place = Place(Path(root) / "inputs", Path(root) / "work/a/b", good)
        place.work.mkdir(parents=True)
        _write(case, place, kind.base)
        before = _snapshot(place.inputs)
        said, logged = _Lines(), io.StringIO()
        with (
            _inside(place.work, cache),
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(logged),
            _tripwires(Path(root), writable=[Path(root) / "work", cache]) as trips,
            _little_memory(),
            _watched(),
        ):
            try:
                status = kind.run(case, place)
            except Tripped as trip:
                trips.append(str(trip))
            except BaseException as error:  # with SystemExit of anyone but argparse
                raise Broken(f"{type(error).__name__} reached the user") from error
        if trips:
            raise Broken(trips[0])
        if _snapshot(place.inputs) != before:
            raise Broken("the input was changed")
    _require_clear(status, said.getvalue(), logged.getvalue())
    return status


class _Lines(io.StringIO):
    """A stderr of a terminal's encoding, where text that cannot be encoded is escaped as Python does it."""

    encoding, errors = "utf-8", "backslashreplace"


def _require_clear(status: int, said: str, logged: str) -> None:
    if status not in (0, 2):
        raise Broken(f"exit status {status}")
    lines = said.splitlines() if "\r" in said else said.split("\n")[:-1]
    lines = [line for line in lines if not LOGGED.match(line)]
    if status == 2 and not lines:
        raise Broken("status 2 without a word")
    for line in lines if not said.startswith("usage: ") else []:
        if not MISTAKE.fullmatch(line) or not line.isprintable() or len(line) > LONGEST_LINE:
            raise Broken(f"not a clear line ({len(line)} characters): {line[:300]!r}")
    if len(lines) > MOST_LINES:
        raise Broken(f"{len(lines)} lines")
    if not all(character.isprintable() or character == "\n" for character in said + logged):
        raise Broken("control characters reach the terminal")


def _write(case: Case, place: Place, base: str | None) -> None:
    if base:
        shutil.copytree(place.good / base, place.inputs)
    place.inputs.mkdir(exist_ok=True)
    for name, content in case.files.items():
        path = place.inputs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == FOLDER:
            path.mkdir()
        elif content == FIFO:
            os.mkfifo(path)
        elif content != MISSING:
            path.symlink_to({LOOP: path.name, ENDLESS: "/dev/zero", DANGLING: "nowhere/else"}[content])


def _snapshot(folder: Path) -> dict[str, str]:
    """Kind and content of everything below a folder; links and pipes are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.read_bytes() if stat.S_ISREG(mode) else b""
        content = os.fsencode(os.readlink(path)) if stat.S_ISLNK(mode) else content
        found[str(path.relative_to(folder))] = f"{mode:o} {hashlib.sha256(content).hexdigest()}"
    return found


@contextlib.contextmanager
def _inside(folder: Path, cache: Path) -> Iterator[None]:
    """The working directory and the cache of the case."""
    before, cache_before = Path.cwd(), os.environ.get("LINGO_DS_CACHE")
    os.chdir(folder)
    os.environ["LINGO_DS_CACHE"] = str(cache)
    try:
        yield
    finally:
        os.chdir(before)
        os.environ.pop("LINGO_DS_CACHE")
        if cache_before is not None:
            os.environ["LINGO_DS_CACHE"] = cache_before


@contextlib.contextmanager
def _little_memory() -> Iterator[None]:
    """What asks for much more gets a MemoryError, instead of the whole machine's memory."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (psutil.Process().memory_info().data + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Ends what takes too long. A thread and a signal of its own: pytest-timeout has the alarm clock."""

    def over(*_: object) -> None:
        raise Tripped(f"still running after {SECONDS} s")

    before = signal.signal(signal.SIGUSR1, over)
    clock = threading.Timer(SECONDS, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1))
    clock.start()
    faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=sys.__stderr__)  # foreign code holds on
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        clock.cancel()
        clock.join()
        signal.signal(signal.SIGUSR1, before)


# -- tripwires

_WRITES = {
    "os.mkdir": (0,),
    "os.remove": (0,),
    "os.rmdir": (0,),
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.utime": (0,),
    "shutil.rmtree": (0,),
    "shutil.move": (0, 1),
    "shutil.copyfile": (1,),
}
_NEVER = {
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
    "marshal.loads",
}
_OPEN_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_armed: Callable[[str, tuple], None] | None = None


def _hook(event: str, args: tuple) -> None:
    if _armed is not None:
        _armed(event, args)


sys.addaudithook(_hook)


@contextlib.contextmanager
def _tripwires(root: Path, *, writable: list[Path]) -> Iterator[list[str]]:
    """Arms the audit hook; what it saw is in the list even where the program swallowed the exception."""
    global _armed
    wires = _Tripwires(root, writable)

    def refuse(*_: object, **__: object) -> None:
        wires.trip("torch.load")

    torch_load, bytecode = torch.load, sys.dont_write_bytecode
    torch.load, sys.dont_write_bytecode, _armed = refuse, True, wires.watch
    try:
        yield wires.trips
    finally:
        _armed = None
        torch.load, sys.dont_write_bytecode = torch_load, bytecode


class _Tripwires:
    """Ends the program at an audit event that must not happen.

    Attributes:
        trips: what happened.
    """

    def __init__(self, root: Path, writable: list[Path]):
        """Takes the case's folder, whose code must not run, and the folders that may be written to."""
        self.trips: list[str] = []
        self._inside, self._writable = str(root.resolve()), [str(path.resolve()) for path in writable]

    def watch(self, event: str, args: tuple) -> None:
        if event == "open":
            self._opened(*args)
        elif event in _WRITES:
            for place in _WRITES[event]:
                if not self._may_be_written(args[place]):
                    self.trip(f"{event} of {args[place]}")
        elif event == "exec":
            if getattr(args[0], "co_filename", "").startswith(self._inside):
                self.trip(f"runs code of {args[0].co_filename}")
        elif event in _NEVER and not _imported(event):
            self.trip(f"{event} {args[:2]}")

    def trip(self, what: str) -> None:
        self.trips.append(what)
        raise Tripped(what)

    def _opened(self, path: object, mode: object, flags: int) -> None:
        if not flags & _OPEN_FLAGS or self._may_be_written(path):
            return
        if not os.path.isdir(path):  # else a temporary file in it, without a name, gone when it is closed
            self.trip(f"opens {path} for writing")

    def _may_be_written(self, path: object) -> bool:
        if isinstance(path, int):
            return True
        whole = os.path.realpath(os.fsdecode(path))
        return whole == os.devnull or any(whole.startswith(folder) for folder in self._writable)


def _imported(event: str) -> bool:
    """Whether the import system itself is at work: it reads bytecode by marshal."""
    return event == "marshal.loads" and sys._getframe(3).f_code.co_filename.startswith("<frozen importlib")


def json_bytes(value: Any) -> bytes:
    """JSON as Python writes it, NaN and lone surrogates included."""
    return json.dumps(value).encode()
