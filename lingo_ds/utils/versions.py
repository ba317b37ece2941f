"""Versions of the libraries that decide results."""

import platform
from importlib import metadata

_LIBRARIES = ("torch", "deepspeed", "transformers", "datasets", "numpy", "bitsandbytes")


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that decide results; imports none of them."""
    return {
        "lingo_ds": _version("lingo_ds", absent="0+unknown"),
        "python": platform.python_version(),
        **{name: _version(name, absent="not installed") for name in _LIBRARIES},
    }


def _version(name: str, *, absent: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return absent
