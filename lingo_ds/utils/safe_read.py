"""Reading what strangers wrote: within bounds, strictly, and never outside of its folder."""

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

JSON_LIMIT = 16 << 20
"""Bytes of the largest JSON file that is read."""


def require_regular(path: Path) -> os.stat_result:
    """What the system says of a file.

    Raises:
        OSError: where there is none, or where it is a folder, pipe or device (which may have no end).
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
        OSError: where it is none, see `require_regular`, or holds more than `most` bytes.
    """
    require_regular(path)
    with path.open("rb") as file:
        data = file.read(-1 if most is None else most + 1)
    if most is not None and len(data) > most:
        raise OSError(errno.EFBIG, f"holds more than {most:,} bytes")
    return data


def own_file(folder: Path, name: str) -> Path:
    """A plain file that lies in the folder itself.

    Raises:
        ValueError: where it is absent, no plain file (a pipe would never end), or a link out of the folder.
    """
    path = folder / name
    real, home = (
        Path(os.path.realpath(one)) for one in (path, folder)
    )  # resolve() raises on a loop of links
    if not real.is_relative_to(home):
        raise ValueError(f"{name} is a link out of the folder; copy the folder with cp -L")
    if not path.is_file():
        raise ValueError(f"{name} is {'no plain file' if path.exists() else 'missing'}")
    return path


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        OSError: where it cannot be read, see `read_regular`.
        ValueError: where it is not JSON, or nested beyond measure.
    """
    try:
        return json.loads(read_regular(path, most=JSON_LIMIT))
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def read_own_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a folder's own JSON file, read strictly: no number but a finite one, no name twice.

    Raises:
        OSError: where it cannot be read, see `read_regular`.
        ValueError: where the file is something else; the message names it.
    """
    content = read_regular(own_file(folder, name), most=JSON_LIMIT)
    try:
        value = json.loads(
            content, parse_float=_finite, parse_constant=_refuse, object_pairs_hook=_without_doubles
        )
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds no object")
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
            raise ValueError(f"{name!r} is there twice")
        value[name] = inner
    return value
