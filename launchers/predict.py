"""Starts `lingo-ds predict` on every process of a launcher.

deepspeed [--hostfile H | --num_accelerators N] launchers/predict.py --adapter DIR --input FILE --output FILE
"""

import sys

from lingo_ds.commands.cli import exit_process, main

if __name__ == "__main__":
    exit_process(main(["predict", *sys.argv[1:]]))
