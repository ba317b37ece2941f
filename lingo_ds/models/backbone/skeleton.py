"""A backbone's module without its weights, built from its config alone.

What builds models takes seconds to import: it is imported where it is called.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from lingo_ds.models.backbone.families import EXPERTS, first_position
from lingo_ds.models.backbone.known_families import is_known, require_family, unusable_mistake
from lingo_ds.models.backbone.own_code import (
    no_base_model_mistake,
    own_code,
    own_code_mistake,
    require_interface,
)
from lingo_ds.models.backbone.supported import read_config, require_supported
from lingo_ds.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

MAX_SIZES = {
    "num_hidden_layers": 1000,
    "num_attention_heads": 10**5,
    "hidden_size": 10**6,
    "vocab_size": 10**8,
    "max_position_embeddings": 10**9,
}
"""Sizes in a `config.json` that no model comes near."""


class Skeleton(NamedTuple):
    """A base model without weights.

    Attributes:
        module: the model, its parameters on the meta device and its buffers real.
        first_position: position of a text's first token, in learned position embeddings.
        embedding: module name of the input embedding.
    """

    module: "PreTrainedModel"
    first_position: int
    embedding: str


def build_skeleton(folder: Path, *, trust_remote_code: bool) -> Skeleton:
    """Builds the module that a folder's config describes; nothing in it learns or is dropped out.

    Raises:
        UserError: where the folder holds no config that transformers knows.
    """
    # What transformers lacks is no mistake of the config: its names are imported outside of the try.
    from transformers import AutoConfig, AutoModel
    from transformers.initialization import no_init_weights

    described = read_config(folder)
    require_supported(described, folder)
    code = own_code(described)
    runs = trust_remote_code and code is not None
    if not runs:
        require_family(described, folder)
    elif "AutoModel" not in described["auto_map"]:
        raise UserError(no_base_model_mistake(folder, described["auto_map"]))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        _prepare(config)
        with _parameters_on_meta(), no_init_weights():
            module = AutoModel.from_config(
                config,
                dtype=torch.float32,
                attn_implementation="sdpa" if runs else _attention(config),
                trust_remote_code=trust_remote_code,
            )
        require_interface(module)
        start = first_position(config)
        table = module.get_input_embeddings()  # raises where the model reads something else than text
    except UserError:
        raise
    except Exception as error:  # of a config that transformers does not expect it may raise anything
        if runs and code:
            known = is_known(described.get("model_type"))
            raise UserError(own_code_mistake(folder, code, error, known=known)) from None
        raise UserError(unusable_mistake(folder, described.get("model_type"), error)) from None
    module.requires_grad_(False)
    for inner in module.modules():
        if isinstance(inner, nn.modules.dropout._DropoutNd):  # with a rate of its own, or of its code
            inner.p = 0.0
    for top in ("pooler", "contact_head"):  # of encoders; the head is ours
        if hasattr(module, top):
            setattr(module, top, None)
    return Skeleton(module, start, next(name for name, inner in module.named_modules() if inner is table))


def _prepare(config: "PreTrainedConfig") -> None:
    """Turns a config's dropout off: a frozen backbone's output must not vary.

    Raises:
        UserError: where it describes experts or an encoder-decoder, by what its class fills in.
        ValueError: where a size is beyond any model's.
    """
    for setting, value in vars(config).items():
        if "drop" in setting and isinstance(value, float):
            setattr(config, setting, 0.0)
    require_supported(config.to_dict(), config.name_or_path)
    _require_sizes(config)


def _attention(config: "PreTrainedConfig") -> str:
    """The attention of torch, or transformers' own products where it does not do (Gemma 2 caps scores)."""
    from transformers import MODEL_MAPPING

    model: Any = MODEL_MAPPING[type(config)]  # mypy knows it as any object
    return "sdpa" if model._supports_sdpa else "eager"


def decoder_layers(skeleton: "PreTrainedModel") -> dict[str, nn.Module]:
    """Decoder layers by module name."""
    names = set(skeleton._no_split_modules or ())
    return {
        name: module
        for name, module in skeleton.named_modules()
        if type(module).__name__ in names and re.search(r"\.\d+$|^\d+$", name)
    }


def map_shape(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear map; GPT-2's Conv1D keeps its weight transposed."""
    from transformers.pytorch_utils import Conv1D

    rows, columns = module.get_parameter("weight").shape
    return (columns, rows) if isinstance(module, Conv1D) else (rows, columns)


def _require_sizes(config: "PreTrainedConfig") -> None:
    """Checks the sizes that time and memory grow with: a skeleton of a billion layers would never be built.

    Raises:
        ValueError: where one is missing or beyond any model.
    """
    for name, most in MAX_SIZES.items():
        value = getattr(config, name, None)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{name} is {value!r}, not a whole number from 1 to {most:,}")
    heads, of_keys = config.num_attention_heads, largest(config, "num_key_value_heads")
    if isinstance(of_keys, int) and (of_keys < 1 or heads % of_keys):
        raise ValueError(f"num_key_value_heads is {of_keys}, which does not divide {heads} attention heads")
    chosen = getattr(config, "num_experts_per_tok", 1)
    if config.model_type in EXPERTS and (not isinstance(chosen, int) or chosen < 1):
        raise ValueError(f"num_experts_per_tok is {chosen!r}, not a whole number from 1")


def largest(config: "PreTrainedConfig", setting: str) -> Any:
    """A setting, or the largest of it where layers differ (Gemma 4); None where there is none."""
    try:
        return getattr(config, setting, None)
    except RuntimeError:
        return max(getattr(layer, setting) for layer in config.per_layer_config)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Inside, new parameters have a shape but no memory; buffers (rotary frequencies) are computed.

    It replaces `register_parameter` of every torch module in the process, until it is left.
    """
    register = nn.Module.register_parameter
    classes: Any = nn.Module  # mypy knows no methods that are assigned to

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param if param is None else nn.Parameter(param.to("meta"), requires_grad=False))

    classes.register_parameter = register_on_meta
    try:
        yield
    finally:
        classes.register_parameter = register
