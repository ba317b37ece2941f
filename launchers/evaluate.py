"""Evaluates.

deepspeed [--hostfile H | --num_accelerators N] launchers/evaluate.py --config FILE [a.b=value]
"""

import sys

from lingo_ds.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
