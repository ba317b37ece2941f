"""What can be a backbone, told from the names of its files and its config.json; anything else is named.

No library of models is imported here, so that a mistake is found before anything else is done: a hub id's
before its weights are downloaded.
"""

import json
import logging
import re
import shlex
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from lingo_ds.models.backbone import families
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.safe_read import git_lfs_pointers, read_json

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WEIGHT_SUFFIXES = (".safetensors", ".gguf", *PICKLES, ".h5", ".msgpack", ".onnx", ".ot")
"""Endings of files that hold weights, in whatever format."""

CONVERT = (
    "from transformers import AutoModel as M, AutoTokenizer as T; "
    '[c.from_pretrained({path}{revision}).save_pretrained("converted") for c in (M, T)]'
)
"""Code that writes a backbone whose weights are pickle files, a folder or a hub id, as safetensors."""

METHODS = {"gptq": "GPTQ", "awq": "AWQ", "fp8": "FP8", "fbgemm_fp8": "FP8"}
"""Methods of quantisation whose names are written otherwise than in `quant_method`."""

QUANTISED_SECTIONS = ("quantization_config", "compression_config", "quantization")
QUANTISED_FILES = ("quantize_config.json", "hf_quant_config.json", "quant_config.json")
"""Sections of a config.json, and files beside it, that say how weights were quantised."""

UNQUANTISED = "give the backbone before it was quantised, and set backbone.quantization=nf4 or int8"
EXPERTS = re.compile(r"(n|num|moe_num)(_local|_routed)?_experts")
"""Settings that count the experts of a layer."""

SEVERAL_INPUTS = {"vision_config": "images", "audio_config": "sound"}
"""Sections of the config.json of a model that reads more than text."""


def convert_command(path: str, *, revision: str | None = None) -> str:
    """A shell command that converts the pickle files of a folder or a hub id."""
    chosen = f", revision={json.dumps(revision)}" if revision else ""
    return f"python -c {shlex.quote(CONVERT.format(path=json.dumps(path), revision=chosen))}"


def read_config(folder: Path, *, shown: str | None = None) -> dict[str, Any]:
    """The object in a backbone's config.json.

    Raises:
        UserError: where there is none.
    """
    path = folder / CONFIG
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise _mistake(shown or folder, "has no config.json", "give a Hugging Face model's folder") from None
    except OSError as error:
        rule = f"has a config.json that cannot be read ({error.strerror})"
        raise _mistake(shown or folder, rule, "give a Hugging Face model's folder") from None
    except ValueError:
        rule = "has a config.json that is not JSON"
        raise _mistake(shown or folder, rule, "download config.json again") from None
    if not isinstance(config, dict):
        raise _mistake(
            shown or folder, "has a config.json that holds no object", "download config.json again"
        )
    return config


def require_supported(config: Mapping[str, Any], shown: object) -> None:
    """Checks that a config describes weights and layers of a kind that can be a backbone.

    Raises:
        UserError: for quantised weights, experts, an encoder-decoder, and what reads more than text.
    """
    if mistakes := [Mistake("backbone.path", shown, *why) for why in _unsupported(config)]:
        raise UserError(mistakes)


def _unsupported(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rule and fix of everything that keeps a model from being a backbone."""
    family = config.get("model_type")
    sections = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in sections:
        quantised = next((part[name] for name in QUANTISED_SECTIONS if part.get(name)), None)
        if quantised:
            yield f"holds weights that are quantised already ({_method(quantised)})", UNQUANTISED
            break
    experts = max(map(_experts, sections))
    if experts and family not in families.EXPERTS:
        fix = f"give a dense model, or a mixture of type {', '.join(sorted(families.EXPERTS))}"
        yield f"is a mixture of experts ({family}: {experts} in a layer), which is not supported", fix
    named = config.get("architectures")
    architectures = named if isinstance(named, list) else ()
    if config.get("is_encoder_decoder") is True or any(
        str(one).endswith("EncoderModel") for one in architectures
    ):
        fix = "give a decoder like Llama, or an encoder like BERT"
        yield f"is an encoder-decoder or a part of one ({family}), which is not supported", fix
    elif others := [what for name, what in SEVERAL_INPUTS.items() if isinstance(config.get(name), dict)]:
        yield f"reads {' and '.join(others)} ({family}), which is not supported", "give a model of text alone"


def _experts(config: Mapping[str, Any]) -> int:
    """How many experts a layer has; 0: it is dense."""
    counts = [value for name, value in config.items() if EXPERTS.fullmatch(str(name)) and type(value) is int]
    return max((count for count in counts if count > 1), default=0)


def _method(quantised: Any) -> str:
    """A method of quantisation in words."""
    if not isinstance(quantised, dict):
        return METHODS.get(str(quantised), str(quantised))
    name = str(quantised.get("quant_method") or "by a method that it does not name")
    bits = quantised.get("bits")
    for width in (4, 8):
        if quantised.get(f"load_in_{width}bit") is True:
            name, bits = "bitsandbytes", width
    return METHODS.get(name, name) + (f", {bits} bits" if type(bits) is int else "")


def require_backbone(
    folder: Path,
    *,
    shown: str | None = None,
    revision: str | None = None,
    names: Collection[str] | None = None,
    weights: bool = True,
) -> None:
    """Checks by its config.json and the names of its files that a folder holds a model which can be used.

    Args:
        folder: holds at least the small ones of the files.
        shown: how the user calls it, e.g. a hub id.
        revision: revision of the hub id.
        names: names of all of its files; None: what lies in the folder.
        weights: whether the weights are needed; otherwise what is wrong with them is a warning.

    Raises:
        UserError: where it is something else, named for what it is.
    """
    where = shown or str(folder)
    if names is None:
        names = _files(folder, where)
        if pointers := git_lfs_pointers(folder):
            if weights or not all(name.endswith(WEIGHT_SUFFIXES) for name in pointers):
                raise UserError(lfs_mistake("backbone.path", where, pointers))
            names = set(names) - set(pointers)
    if CONFIG not in names:
        raise _mistake(where, *_without_config(folder, names))
    require_supported(read_config(folder, shown=where), where)
    if found := [name for name in QUANTISED_FILES if name in names]:
        raise _mistake(where, f"holds weights that are quantised already ({found[0]})", UNQUANTISED)
    if wrong := weights_mistake(folder, names, shown=where, revision=revision):
        if weights:
            raise UserError(wrong)
        if any(name.endswith(WEIGHT_SUFFIXES) for name in names):
            logger.warning("train would refuse it: %s", wrong)


def lfs_mistake(where: str, value: object, pointers: list[str]) -> Mistake:
    """The mistake of files whose content was never fetched."""
    rule = f"holds only git-lfs pointers in place of files ({_some(pointers)})"
    return Mistake(where, value, rule, "run `git lfs install` once and `git lfs pull` in the folder")


def _files(folder: Path, where: str) -> set[str]:
    try:
        names = {path.name for path in folder.iterdir()}
        files = {name for name in names if (folder / name).is_file()}
    except OSError as error:
        raise _mistake(
            where, f"cannot be read ({error.strerror})", "check the folder's permissions"
        ) from None
    if not names:
        raise _mistake(where, "is an empty folder", "give a Hugging Face model's folder")
    return files


def _without_config(folder: Path, names: Collection[str]) -> tuple[str, str]:
    """Rule and fix of a folder that has no config.json."""
    if "adapter_config.json" in names:
        return _adapter(folder, names)
    if (folder / "adapter" / "task.json").is_file():
        fix = "set --adapter to it, and backbone.path to the backbone that its config.yaml names"
        return "is the folder of a run of this program, no backbone", fix
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return _gguf(gguf)
    if "params.json" in names or any(name.startswith("consolidated") for name in names):
        fix = "give the same model in Hugging Face's format (the id often ends in -hf)"
        return "holds a model in its maker's own format, without config.json", fix
    inner = sorted(
        path.parent for path in (*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json"))
    )
    return "has no config.json", f"give {inner[-1] if inner else 'the folder in which it lies'}"


def _adapter(folder: Path, names: Collection[str]) -> tuple[str, str]:
    """Rule and fix of an adapter, which may name its backbone."""
    try:
        base = read_json(folder / "adapter_config.json")["base_model_name_or_path"]
    except (OSError, ValueError, TypeError, KeyError):
        base = None
    whose = "an adapter of this program" if "task.json" in names else "an adapter in PEFT's format"
    fix = (
        f"set backbone.path={base}" if isinstance(base, str) and base else "give the model it was trained on"
    )
    return f"is {whose}, no backbone", fix


def _gguf(files: list[str]) -> tuple[str, str]:
    rule = f"holds weights in the format of llama.cpp ({_some(files)})"
    return rule, "set backbone.path to one such file on this machine, or give the original with safetensors"


def weights_mistake(
    folder: Path, names: Collection[str], *, shown: str, revision: str | None = None
) -> Mistake | None:
    """What is wrong with the weight files of a model, judged by their names; None: nothing."""
    if INDEX in names or WEIGHTS in names:
        return _missing_shards(folder, names)
    return Mistake("backbone.path", shown, *_without_weights(folder, names, shown, revision))


def _missing_shards(folder: Path, names: Collection[str]) -> Mistake | None:
    if INDEX not in names:
        return None
    index = folder / INDEX
    missing = sorted(set(read_index(index).values()) - set(names))
    rule = "is named in the index but not in the folder"
    return Mistake(str(index), _some(missing), rule, "download it again") if missing else None


def read_index(path: Path) -> dict[str, str]:
    """The file of each weight.

    Raises:
        UserError: where the file is no index, or names files outside of its folder.
    """
    try:
        files = {str(key): str(file) for key, file in read_json(path)["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        rule = "is not an index of weights"
        raise UserError(Mistake(str(path), "file", rule, "download it again")) from None
    for file in files.values():
        if Path(file).name != file:
            raise UserError(Mistake(str(path), file, "is not a file in the folder", "download it again"))
    return files


def _without_weights(
    folder: Path, names: Collection[str], shown: str, revision: str | None
) -> tuple[str, str]:
    """Rule and fix of a model that has no weights which can be read."""
    ends = {suffix: [n for n in names if n.endswith(suffix)] for suffix in WEIGHT_SUFFIXES}
    shards = [name for name in names if SHARD.fullmatch(name)]
    if "adapter_config.json" in names:
        return _adapter(folder, names)
    if shards:
        return f"has parts of the weights ({_some(shards)}) without {INDEX}", f"download {INDEX}"
    if ends[".safetensors"]:
        rule = f"has no model.safetensors, only {_some(ends['.safetensors'])}"
        return rule, "give a folder whose weights are named as transformers names them"
    if any(ends[suffix] for suffix in PICKLES):
        rule = "has its weights only as pickle files, which can run code and are never loaded"
        return rule, f"convert files that you trust once: {convert_command(shown, revision=revision)}"
    if ends[".gguf"]:
        return _gguf(ends[".gguf"])
    if others := [name for suffix in (".h5", ".msgpack", ".onnx", ".ot") for name in ends[suffix]]:
        rule = f"has its weights only for other libraries than PyTorch ({_some(others)})"
        return rule, "give a copy of the model with safetensors"
    return "has no model.safetensors", "give a folder with the model's weights as safetensors"


def file_mistake(path: Path) -> Mistake:
    """The mistake of giving a file in place of a folder."""
    if path.suffix not in WEIGHT_SUFFIXES:
        return Mistake("backbone.path", path, "is a file", "give a Hugging Face folder or a hub id")
    rule = "is one file of weights"
    return Mistake("backbone.path", path, rule, f"give its folder, with config.json: {path.parent}")


def _some(names: Collection[str]) -> str:
    """A few names, and how many more there are."""
    first = sorted(names)[:3]
    return ", ".join(first) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _mistake(where: object, rule: str, fix: str) -> UserError:
    return UserError(Mistake("backbone.path", where, rule, fix))
