"""Defaults of libraries that are set by environment variables, before the libraries are imported."""

from collections.abc import MutableMapping
from importlib.metadata import version

ALLOCATOR_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables in which torch looks for settings of its memory on GPUs, the first that is set being taken."""


def set_library_defaults(environment: MutableMapping[str, str]) -> None:
    """Sets what the user has not set: call it before torch is imported."""
    environment.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost process is reported by our own watchdog
    # Packs are of any size: segments that grow are used again by larger ones, where those of fixed size would
    # be given back and asked for anew. AMD's GPUs do not have them.
    chosen = any(name in environment for name in ALLOCATOR_SETTINGS)
    if not chosen and "rocm" not in version("torch"):
        environment[ALLOCATOR_SETTINGS[0]] = "expandable_segments:True"
