"""GGUF files, llama.cpp's format, as backbones: converted once into a Hugging Face folder in the cache.

transformers reads them through the package `gguf` and multiplies quantised weights out, which takes the whole
model in memory on one process. A folder of safetensors can then be sharded, packed and merged as any other.
"""

import hashlib
import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import Any

from lingo_ds.models.backbone.supported import CONFIG
from lingo_ds.utils.errors import Mistake, UserError, reason_of
from lingo_ds.utils.files import read_ends, write_once

logger = logging.getLogger(__name__)

SUFFIX = ".gguf"
PART = re.compile(r".*-\d{5}-of-\d{5}\.gguf")
VERSION = 1
"""Number to raise whenever the converted folder changes, so that no older cache is used."""

NEEDED = ("gguf", "accelerate")
"""Packages with which transformers reads GGUF."""

END_BYTES = 1 << 20
"""Bytes at both ends of a file that it is identified by, beside its size: its header is in the first ones."""

DTYPES = (({"F32"}, "float32"), ({"F32", "F16"}, "float16"))
"""Types of weights in a file, and the dtype that holds all of them; weights of other types become bf16."""

ORIGINAL = "give the model that the file was made from, with safetensors"


def is_gguf(path: Path) -> bool:
    """Whether a path is a file of this format, by its name."""
    return path.suffix == SUFFIX and path.is_file()


def converted(path: Path, cache: Path) -> Path:
    """The folder of a file's model, which is converted where the cache lacks it.

    Raises:
        UserError: where packages are missing, or the file cannot be read.
    """
    folder = cache / "gguf" / _fingerprint(path)
    if folder.is_dir():
        return folder
    if PART.fullmatch(path.name):
        fix = "join the parts once: `llama-gguf-split --merge FIRST_PART WHOLE.gguf`"
        raise UserError(Mistake("backbone.path", path, "is one of several parts of a model", fix))
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        rule = f"is read with {' and '.join(missing)}, not installed here"
        raise UserError(Mistake("backbone.path", path, rule, f"pip install lingo_ds[gguf], or {ORIGINAL}"))
    try:
        write_once(folder, lambda aside: _convert(path, aside))
    except Exception as error:  # of a file that the library does not expect it may raise anything
        if isinstance(error, OSError) and error.errno:
            raise  # a full disk is reported elsewhere
        rule = f"cannot be read by transformers ({reason_of(error)})"
        raise UserError(Mistake("backbone.path", path, rule, ORIGINAL)) from None
    return folder


def _convert(path: Path, folder: Path) -> None:
    """Writes the base model, without the language model's head, and the tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    dtype = _dtype(path)
    logger.info("converting %s once: its weights become %s, in %s", path, dtype, folder.parent)
    source: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    model = AutoModel.from_pretrained(**source, dtype=dtype, **_dequantized())
    model.save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_text())
    config.pop("transformers_version", None)  # the same file is the same backbone after an upgrade
    config.pop("quantization_config", None)
    (folder / CONFIG).write_text(json.dumps(config, indent=2))


def _dequantized() -> dict[str, Any]:
    """The setting by which newer versions of transformers multiply out; older ones know nothing else."""
    import transformers

    made = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": made(dequantize=True)} if made else {}


def _dtype(path: Path) -> str:
    from gguf import GGUFReader

    found = {tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    return next((dtype for types, dtype in DTYPES if found <= types), "bfloat16")


def _fingerprint(path: Path) -> str:
    """32 hex digits of a file's size and ends, and of how it is converted."""
    described = f"{VERSION} {path.stat().st_size} ".encode()
    return hashlib.sha256(described + read_ends(path, END_BYTES)).hexdigest()[:32]
