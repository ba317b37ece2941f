"""Reads files from strangers: of bounded size, strictly, and never outside of their folder."""

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MAX_JSON_BYTES = 16 << 20
"""Bytes of the largest JSON file that is read."""


def require_regular(path: Path) -> os.stat_result:
    """The status of a regular file.

    Raises:
        OSError: where there is none, or it is a folder, a pipe or a device (which may never end).
    """
    try:
        found = path.stat()
    except ValueError as error:  # a NUL byte in the path
        raise OSError(errno.EINVAL, str(error)) from None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file")
    return found


def read_regular(path: Path, *, most: int | None = None) -> bytes:
    """All bytes of a file.

    Raises:
        OSError: where it is not a regular file (`require_regular`), or holds more than `most` bytes.
    """
    require_regular(path)
    with path.open("rb") as file:
        data = file.read(-1 if most is None else most + 1)
    if most is not None and len(data) > most:
        raise OSError(errno.EFBIG, f"holds more than {most:,} bytes")
    return data


LFS_POINTER = b"version https://git-lfs"
"""How a file begins whose content git-lfs has not fetched."""


def git_lfs_pointers(folder: Path) -> list[str]:
    """Names of a folder's files that hold only a pointer to their content.

    Raises:
        OSError: where the folder cannot be read.
    """
    return sorted(path.name for path in folder.iterdir() if path.is_file() and _is_pointer(path))


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def own_file(folder: Path, name: str) -> Path:
    """The path of a regular file that lies in the folder itself.

    Raises:
        ValueError: where it is absent, not a regular file, or a link out of the folder.
    """
    path = folder / name
    real, home = (
        Path(os.path.realpath(one)) for one in (path, folder)
    )  # resolve() raises on a loop of links
    if not real.is_relative_to(home):
        raise ValueError(f"{name} is a link out of the folder; copy the folder with cp -L")
    if not path.is_file():
        raise ValueError(f"{name} is {'not a regular file' if path.exists() else 'missing'}")
    return path


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: where it cannot be read (`read_regular`).
        ValueError: where it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(read_regular(path, most=MAX_JSON_BYTES))
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def read_own_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a folder's own JSON file, read strictly: finite numbers only, no name twice.

    Raises:
        OSError: where it cannot be read (`read_regular`).
        ValueError: where the file holds something else; the message names the file.
    """
    content = read_regular(own_file(folder, name), most=MAX_JSON_BYTES)
    try:
        value = json.loads(
            content, parse_float=_finite, parse_constant=_refuse, object_pairs_hook=_without_doubles
        )
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} does not hold an object")
    return value


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, inner in pairs:
        if name in value:
            raise ValueError(f"{name!r} occurs twice")
        value[name] = inner
    return value
