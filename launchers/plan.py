"""Plans: deepspeed [--hostfile H | --num_accelerators N] launchers/plan.py --config FILE [a.b=value]."""

import sys

from lingo_ds.commands.cli import exit_process, main

if __name__ == "__main__":
    exit_process(main(["plan", *sys.argv[1:]]))
