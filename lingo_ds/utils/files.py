"""Writes files and folders so that a reader never finds half of one, and reports full disks."""

import errno
import fcntl
import logging
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE)
"""Error numbers of a system that cannot store or open any more."""

_UMASK = os.umask(0o022)
os.umask(_UMASK)


def default_cache() -> Path:
    """The cache's folder: $LINGO_DS_CACHE, else ~/.cache/lingo_ds."""
    return Path(os.environ.get("LINGO_DS_CACHE") or Path.home() / ".cache" / "lingo_ds")


def atomic_write(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file or folder under a temporary name, syncs it to disk and renames it to `path`.

    Args:
        path: the file or folder to write or replace.
        write: writes the content to the path that it is given; what it returns is ignored.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    aside, old = path.with_name(f".{path.name}.{mark}.new"), path.with_name(f".{path.name}.{mark}.old")
    try:
        write(aside)
        for file in [aside, *aside.rglob("*")]:
            file.chmod(file.stat().st_mode | 0o444 & ~_UMASK)  # safetensors writes for the owner alone
            _sync(file)
        if path.is_dir():  # a folder with content cannot be replaced in one step
            path.rename(old)
        os.replace(aside, path)
        _sync(path.parent)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        _remove(aside)
        _remove(old)


def write_once(folder: Path, write: Callable[[Path], object]) -> None:
    """Writes a folder by `atomic_write` unless it is there; another process may write the same meanwhile.

    Args:
        folder: the folder, whose name says what is in it, so that whoever finishes first wrote the same.
        write: makes the folder at the path that it is given.
    """
    if folder.is_dir():
        return
    try:
        atomic_write(folder, write)
    except OSError:
        if not folder.is_dir():  # otherwise another process finished it first
            raise


def read_ends(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file, then its last: what lies in both, of a short file, comes twice."""
    with path.open("rb") as file:
        first = file.read(count)
        file.seek(max(os.fstat(file.fileno()).st_size - count, 0))
        return first + file.read()


def make_folder(path: Path, *, setting: str) -> Path:
    """Makes a folder that a setting names, with its parents.

    Raises:
        UserError: where it cannot be made, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            Mistake(setting, path, f"cannot be a folder ({reason})", "name another folder")
        ) from None
    return path


def require_free(output: Path, *, kept: Sequence[Path], overwrite: bool, markers: Sequence[str]) -> None:
    """Checks that a folder can be written, and that only an earlier one of its kind would be replaced.

    Args:
        output: the folder to write.
        kept: folders that must be kept: `output` must neither be nor contain them.
        overwrite: whether an existing folder may be replaced.
        markers: names of files, any of which shows that a folder is of the kind that may be replaced.

    Raises:
        UserError: where it cannot be written.
    """
    where, real = "--output", output.resolve()
    if any(path.resolve().is_relative_to(real) for path in kept):
        raise UserError(Mistake(where, output, "is or holds what is read", "name another folder"))
    if os.path.lexists(output):
        if not overwrite:
            raise UserError(
                Mistake(where, output, "exists already", "name a new folder, or give --overwrite")
            )
        known = (
            not output.is_symlink() and output.is_dir() and any((output / name).is_file() for name in markers)
        )
        if not known:
            rule = "is not an earlier export"
            raise UserError(Mistake(where, output, rule, "name a new folder"))
    make_folder(real.parent, setting=where)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clear_leftovers(folder: Path) -> None:
    """Removes temporary files that a killed process left in a folder; restores what it was replacing."""
    for path in folder.glob(".*.*"):
        if not (found := re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.(new|old)", path.name)):
            continue
        target = folder / found[1]
        if found[2] == "old" and not target.exists():
            path.rename(target)
        else:
            _remove(path)


@contextmanager
def exclusive_lock(folder: Path, *, setting: str) -> Iterator[None]:
    """Locks a folder for this process while inside; the lock ends with the process as well.

    Raises:
        UserError: where another process holds the lock.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            rule = f"another run is writing there ({holder})"
            raise UserError(Mistake(setting, folder, rule, "wait for it, or name another folder")) from None
        except OSError as error:  # a file system without locks
            logger.warning(
                "%s cannot be locked (%s): make sure that no other run writes there", folder, error
            )
        os.truncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(handle)


@contextmanager
def report_disk_full(folder: Path) -> Iterator[None]:
    """Reports a full or read-only disk, or too many open files, as the user's to correct.

    Raises:
        UserError: in place of such an OSError.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) not in DISK_FULL_ERRNOS and "I/O error" not in str(error):
            raise
        where = getattr(error, "filename", None) or folder
        reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]
        rule = "nothing more can be written there"
        fix = "free some space, then run the same command again to resume from the last checkpoint"
        raise UserError(Mistake(str(where), reason, rule, fix)) from error
