"""Starts `lingo-ds scan` on every process of a launcher.

deepspeed [--hostfile H | --num_accelerators N] launchers/scan.py --adapter DIR --genome FASTA ...
"""

import sys

from lingo_ds.commands.cli import exit_process, main

if __name__ == "__main__":
    exit_process(main(["scan", *sys.argv[1:]]))
