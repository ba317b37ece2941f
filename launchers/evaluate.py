"""Evaluates.

deepspeed [--hostfile H | --num_accelerators N] launchers/evaluate.py --config FILE [a.b=value]
"""

import sys

from lingo_ds.commands.cli import exit_process, main

if __name__ == "__main__":
    exit_process(main(["evaluate", *sys.argv[1:]]))
