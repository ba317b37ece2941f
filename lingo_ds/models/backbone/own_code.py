"""Code that comes with a backbone's files: whether it runs, and what is said of it."""

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lingo_ds.utils.errors import Mistake, UserError, reason_of

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

SWITCH = "set backbone.trust_remote_code=true to run that code"


def own_code(config: Mapping[str, Any]) -> str | None:
    """The class of a model's own code that its config names, e.g. `bert_layers.BertModel`; None: none."""
    names = config.get("auto_map")
    if not isinstance(names, dict):
        return None
    models = sorted(key for key in names if str(key).startswith("AutoModel"))
    places = ("AutoModel", *models, "AutoConfig")
    return next((names[key] for key in places if isinstance(names.get(key), str)), None)


def runs_own_code(module: "nn.Module") -> bool:
    """Whether a module's class came with its files."""
    return type(module).__module__.startswith("transformers_modules.")


def warn_of_own_code(config: Mapping[str, Any], *, trust_remote_code: bool) -> None:
    """Warns where a model's own code is left out and transformers' class of that type is used instead."""
    code = own_code(config)
    if code and not trust_remote_code:
        logger.warning(
            "the backbone has its own code (%s), instead of which transformers' own class for %s is used; %s",
            code,
            config.get("model_type"),
            SWITCH,
        )


def own_code_mistake(folder: Path, code: str, error: Exception, *, known: bool) -> Mistake:
    """The mistake of a model whose own code failed; `known`: transformers has a class of its type."""
    rule = f"has its own code ({code}), which cannot be used here ({reason_of(error)})"
    fix = "install what its code needs, or give another backbone"
    if isinstance(error, ImportError):
        fix = "install the packages that its code imports"
    elif known:
        fix = "set backbone.trust_remote_code=false to use transformers' own class of that type"
    return Mistake("backbone.path", folder, rule, fix)


def no_base_model_mistake(folder: Path, auto_map: Mapping[str, Any]) -> Mistake:
    """The mistake of a model whose own code is all for tasks: an adapter needs the model below its head."""
    rule = f"has own code for {', '.join(sorted(auto_map))}, and none for its base model (AutoModel)"
    return Mistake("backbone.path", folder, rule, "give another backbone, or name its base model in auto_map")


def require_interface(module: "nn.Module") -> None:
    """Checks that a module is called as transformers' own models are.

    Raises:
        TypeError: where it is not.
    """
    taken = inspect.signature(module.forward).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()):
        return
    if missing := [name for name in ("input_ids", "attention_mask") if name not in taken]:
        raise TypeError(f"{type(module).__name__}.forward does not take {' and '.join(missing)}")


def last_hidden_state(module: "nn.Module", output: Any) -> Any:
    """The last hidden states in what a module returned, which code of a model's own may return otherwise.

    Raises:
        UserError: where it returns something else than transformers' own models do.
    """
    if hasattr(output, "last_hidden_state"):
        return output.last_hidden_state
    what = "its own code" if runs_own_code(module) else "a class of transformers"
    name = f"{what} ({type(module).__name__})"
    rule = f"is run by {name}, which returns {type(output).__name__} without last_hidden_state"
    fix = "set backbone.trust_remote_code=false, or give another backbone"
    raise UserError(Mistake("backbone.path", getattr(module, "name_or_path", ""), rule, fix))
