"""Exports: python launchers/export.py --adapter DIR --to adalora|lora|merged --output DIR [--dtype bf16]."""

import sys

from lingo_ds.commands.cli import leave, main

if __name__ == "__main__":
    leave(main(["export", *sys.argv[1:]]))
