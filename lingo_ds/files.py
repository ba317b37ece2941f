"""Writing files so that a reader finds the old or the new content, never half of one."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` make a file or folder beside `path`, syncs it to disk, and puts it in `path`'s place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, old = path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")
    _remove(aside)
    write(aside)
    for file in [aside, *aside.rglob("*")]:
        if file.is_file():
            _sync(file)
    if path.is_dir():  # a folder with content cannot be replaced in one step
        _remove(old)
        path.rename(old)
    os.replace(aside, path)
    _remove(old)
    _sync(path.parent)


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
