"""Writing files and folders so that a reader never finds half of one."""

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from lingo_ds.errors import Mistake, UserError

_UMASK = os.umask(0o022)
os.umask(_UMASK)


def write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` make a file or folder beside `path`, syncs it to disk, and puts it in `path`'s place."""
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


def make_folder(path: Path, *, setting: str) -> Path:
    """Makes a folder that a setting names, with those above it.

    Raises:
        UserError: where that cannot be, or where nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            Mistake(setting, path, f"cannot be a folder ({reason})", "name another place")
        ) from None
    return path


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
