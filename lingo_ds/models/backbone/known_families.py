"""Which types of models transformers has, and which of them read text alone.

Its tables take a second to import: they are imported where they are read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lingo_ds.models.backbone.families import TARGETS
from lingo_ds.models.backbone.own_code import SWITCH, own_code
from lingo_ds.utils.errors import Mistake, UserError, reason_of

KINDS = {
    "sound": ("AUDIO_CLASSIFICATION", "CTC", "SPEECH_SEQ_2_SEQ", "TEXT_TO_WAVEFORM", "TEXT_TO_SPECTROGRAM"),
    "images": ("IMAGE_TEXT_TO_TEXT", "IMAGE", "IMAGE_CLASSIFICATION", "ZERO_SHOT_IMAGE_CLASSIFICATION"),
}
"""What models of transformers' tables for these tasks read."""

OTHER_FAMILY = f"give a backbone of another family, e.g. {', '.join(TARGETS)}"


def is_known(family: object) -> bool:
    """Whether transformers has models of a type."""
    from transformers import CONFIG_MAPPING

    return isinstance(family, str) and family in CONFIG_MAPPING


def require_family(config: Mapping[str, Any], shown: object) -> None:
    """Checks that transformers' own classes can read text with a config's type of model.

    Raises:
        UserError: where it does not know the type, or knows it for something else.
    """
    family, code = config.get("model_type"), own_code(config)
    if is_known(family):
        if (what := _reads(str(family))) is not None:
            rule = f"reads {what} ({family}), which is not supported"
            raise UserError(Mistake("backbone.path", shown, rule, OTHER_FAMILY))
        return
    from transformers import __version__

    rule = f"is of type {family}, which transformers {__version__} does not know"
    fix = f"install a transformers that knows it, or {OTHER_FAMILY}"
    if not isinstance(family, str) or not family:
        rule, fix = "has a config.json that names no model_type", "give a Hugging Face model's folder"
    if code:
        rule, fix = f"{rule}, and has its own code ({code})", SWITCH
    raise UserError(Mistake("backbone.path", shown, rule, fix))


def _reads(family: str) -> str | None:
    """What models of a type read beside or instead of text; None: text alone."""
    from transformers.models.auto import modeling_auto

    for what, tasks in KINDS.items():
        if any(family in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in tasks):
            return what
    return None


def unusable_mistake(folder: Path, family: object, error: Exception) -> Mistake:
    """The mistake of a model whose type transformers knows, and whose module could not be built."""
    reason = " ".join(reason_of(error).split())[:200]
    if family in TARGETS:
        rule = f"has no usable config.json ({reason})"
        return Mistake("backbone.path", folder, rule, "download the model's config.json again")
    rule = f"is of type {family}, whose layers cannot be used here ({reason})"
    return Mistake("backbone.path", folder, rule, OTHER_FAMILY)
