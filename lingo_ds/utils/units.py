"""GiB, and bytes as text."""

GIB = 1024**3
"""Bytes of one GiB."""


def as_bytes(size: float) -> str:
    """A size in GiB or MiB, as text."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 1024**2:.1f} MiB"
