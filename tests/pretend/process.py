"""A process with a pretend card: calls the function that `cards.py` left in a folder; leaves its value."""

import os
import pickle
import sys
import traceback
from pathlib import Path

from tests.pretend import device  # noqa: F401  before torch

import torch  # isort: skip


def main(folder: Path) -> int:
    """Calls the function; the exit status is 0 where it returned."""
    torch.set_num_threads(1)
    with (folder / "call").open("rb") as call:
        sys.path[:] = pickle.load(call)
        function, args = pickle.load(call)
    try:
        value = function(*args)
    except BaseException:
        traceback.print_exc()
        return 1
    (folder / f"value-{os.environ.get('RANK', '0')}").write_bytes(pickle.dumps(value))
    return 0


if __name__ == "__main__":
    status = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # torch's own end would look for a real device
