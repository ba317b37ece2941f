"""Says which card and libraries `make gpu` would use here, or in one line why it cannot."""

import sys

from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.versions import versions


def describe_card() -> str:
    """One line on the first card.

    Raises:
        UserError: where torch is missing or sees none.
    """
    try:
        import torch
    except ImportError:
        fix = "make setup, or make gpu PYTHON=/path/to/python with torch for CUDA"
        raise UserError(Mistake("torch", "not installed", f"is needed in {sys.executable}", fix)) from None
    if not torch.cuda.is_available():
        fix = "run it where nvidia-smi lists one and torch is a CUDA build (docs/gpu.md)"
        raise UserError(Mistake("GPU", "none", f"torch {torch.__version__} sees no card here", fix))
    card, capability = torch.cuda.get_device_properties(0), torch.cuda.get_device_capability(0)
    memory, (major, minor) = card.total_memory / 1024**3, capability
    return f"{card.name}, {memory:.0f} GiB, compute capability {major}.{minor}, CUDA {torch.version.cuda}"


def main() -> int:
    """Prints the card and the versions of libraries."""
    try:
        lines = [describe_card(), ", ".join(f"{name} {version}" for name, version in versions().items())]
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
