"""Starts `lingo-ds plan` on every process of a launcher.

deepspeed [--hostfile H | --num_accelerators N] launchers/plan.py --config FILE [section.field=value ..]
"""

import sys

from lingo_ds.commands.cli import exit_process, main

if __name__ == "__main__":
    exit_process(main(["plan", *sys.argv[1:]]))
