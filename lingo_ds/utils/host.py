"""Memory of this host or container."""

from pathlib import Path

import psutil


def host_bytes() -> int:
    """Bytes of memory of this host, or the limit of the container that this process is in."""
    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text) if text.isdigit() else total)
