"""Starts `lingo-ds explain` on every process of a launcher.

deepspeed [--hostfile H | --num_accelerators N] launchers/explain.py --adapter DIR --input FILE --output DIR
"""

import sys

from lingo_ds.commands.cli import exit_process, main

if __name__ == "__main__":
    exit_process(main(["explain", *sys.argv[1:]]))
