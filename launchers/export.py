"""Starts `lingo-ds export` in one process.

python launchers/export.py --adapter DIR --to adalora|lora|merged --output DIR [--dtype bf16]
"""

import sys

from lingo_ds.commands.cli import exit_process, main

if __name__ == "__main__":
    exit_process(main(["export", *sys.argv[1:]]))
