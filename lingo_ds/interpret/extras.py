"""Libraries of the extra `explain`, imported where they are needed."""

import importlib
from typing import Any

from lingo_ds.utils.errors import Mistake, UserError


def import_extra(module: str, *, option: str) -> Any:
    """Imports a module of the extra `explain`.

    Raises:
        UserError: where its package is not installed; `option` is what needs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        rule = f"needs {package}, which cannot be imported ({error})"
        raise UserError(
            Mistake(option, package, rule, "pip install 'lingo_ds[explain]'"), on_all=True
        ) from None
