"""Trains: deepspeed [--hostfile H | --num_accelerators N] launchers/train.py --config FILE [a.b=value]."""

import sys

from lingo_ds.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
