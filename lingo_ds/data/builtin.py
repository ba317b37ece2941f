"""The promoters that need no download."""

from pathlib import Path

from lingo_ds.data import synthetic_promoters
from lingo_ds.utils.resources import builtin_folder, make_builtin

BUILTIN_DATA = "builtin:promoters"


def make_builtin_data(name: str, cache: Path) -> None:
    """Writes the generated promoters where `name` names them and the cache lacks them.

    Raises:
        UserError: where no data of that name is built in.
    """
    make_builtin(name, {BUILTIN_DATA: synthetic_promoters.write_promoters}, cache, setting="data.path")


def data_folder(path: str, cache: Path) -> Path:
    """The folder with the data's files."""
    return builtin_folder(path, cache) if path == BUILTIN_DATA else Path(path)
