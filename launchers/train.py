"""Starts `lingo-ds train` on every process of a launcher.

deepspeed [--hostfile H | --num_accelerators N] launchers/train.py --config FILE [section.field=value ..]
"""

import sys

from lingo_ds.commands.cli import exit_process, main

if __name__ == "__main__":
    exit_process(main(["train", *sys.argv[1:]]))
