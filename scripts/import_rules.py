"""The import rules of pyproject.toml, as the scripts need them: floors of rooms, seams to libraries."""

import tomllib
from pathlib import Path
from typing import NamedTuple

PACKAGE = "lingo_ds"


class Seam(NamedTuple):
    """A foreign library that only some modules import.

    Attributes:
        library: its import name.
        modules: the modules that may import it, below `lingo_ds`; none: no module may.
    """

    library: str
    modules: list[str]


class ImportRules(NamedTuple):
    """What import-linter holds.

    Attributes:
        floors: the layers of each container (`lingo_ds.models`, ..) from the top, as lists of names.
        seams: libraries that are imported in named places only.
    """

    floors: dict[str, list[list[str]]]
    seams: list[Seam]


def read_rules(root: Path) -> ImportRules:
    """The contracts of the checkout at `root`."""
    settings = tomllib.loads((root / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    floors = {
        container: [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]
        for contract in contracts
        if contract["type"] == "layers"
        for container in contract["containers"]
    }
    seams = [
        Seam(library, [_importer(line) for line in contract.get("ignore_imports", ())])
        for contract in contracts
        if contract["type"] == "forbidden"
        for library in contract["forbidden_modules"]
    ]
    return ImportRules(floors, seams)


def _importer(line: str) -> str:
    """`models.backbone.zero` of "lingo_ds.models.backbone.zero -> deepspeed"."""
    return line.partition(" -> ")[0].removeprefix(f"{PACKAGE}.")
