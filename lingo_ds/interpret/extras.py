"""Libraries of the extra `explain`, imported where they are needed."""

import importlib
from typing import Any

from lingo_ds.utils.errors import Mistake, UserError


def import_extra(module: str, *, option: str, otherwise: str = "") -> Any:
    """Imports a module of the extra `explain`.

    Args:
        module: its name.
        option: what needs it.
        otherwise: the way to do without, which the remedy names as well.

    Raises:
        UserError: where its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        rule = f"needs {package}, which cannot be imported ({error})"
        fix = f"pip install 'lingo_ds[explain]'{otherwise and f', or {otherwise}'}"
        raise UserError(Mistake(option, package, rule, fix), on_all=True) from None
