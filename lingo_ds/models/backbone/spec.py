"""The backbone without its weights: shapes, linear maps, layers.

Cheap for any size, needed before anything is loaded. What builds models takes seconds to import: it is where
it is called, and shapes that were read once are kept.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lingo_ds.models.backbone import families
from lingo_ds.models.backbone.families import (
    DROPOUT_SETTINGS,
    PACKABLE,
    SHARED_INPUTS,
    TARGETS,
    first_position,
)
from lingo_ds.models.backbone.weight_sizes import Weight, Weights
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

MAX_SIZES = {
    "num_hidden_layers": 1000, "hidden_size": 10**6, "vocab_size": 10**8, "max_position_embeddings": 10**9,
}  # fmt: skip
"""Sizes in a `config.json` that no model comes near."""


@dataclass(frozen=True)
class BackboneSpec:
    """Shapes of a frozen language model.

    Attributes:
        folder: where its files are.
        trust_remote_code: whether code in the folder may be run.
        model_type: family name, e.g. `llama`.
        linear_maps: (d_out, d_in) of every linear map inside the decoder layers, by module name.
        target_names: what `all-linear` means for this family; empty: every map.
        layers: number of decoder layers.
        last_layer: module name of the one whose output is the last hidden state.
        shared_inputs: names of linear maps of one module that read the same tensor.
        causal: False in an encoder, where a token sees those after it.
        packable: whether packed attention is known to give what padded batches give.
        first_position: of a text, in learned position embeddings.
        parameters: entries of all weights.
        layer_parameters: entries of the largest decoder layer.
        hidden_size: width of the residual stream.
        output_size: width of what comes out.
        query_size: width of the queries of all heads.
        key_size: width of the keys of all heads, which several query heads may share.
        upcast_norms: whether norms compute in fp32 and keep their input so (transformers' RMS norms).
        ffn_size: width inside the feed-forward part.
        context: longest input in tokens.
        embedding: module name of the input embedding.
        embedding_shape: (vocabulary, size) of it; OPT may widen its rows afterwards.
        weights: size of every weight, by layer.
    """

    folder: Path
    trust_remote_code: bool
    model_type: str
    linear_maps: dict[str, tuple[int, int]]
    target_names: tuple[str, ...]
    layers: int
    last_layer: str
    shared_inputs: tuple[tuple[str, ...], ...]
    causal: bool
    packable: bool
    first_position: int
    parameters: int
    layer_parameters: int
    hidden_size: int
    output_size: int
    query_size: int
    key_size: int
    upcast_norms: bool
    ffn_size: int
    context: int
    embedding: str
    embedding_shape: tuple[int, int]
    weights: Weights

    @cached_property
    def skeleton(self) -> nn.Module:
        """The module with parameters on the meta device and real buffers; loading fills it."""
        return _build_skeleton(self.folder, trust_remote_code=self.trust_remote_code)[0]

    @property
    def layer_classes(self) -> tuple[type[nn.Module], ...]:
        """Classes of the decoder layers."""
        return tuple({type(layer) for layer in _layers_of(self.skeleton).values()})


def read_spec(folder: Path, *, trust_remote_code: bool = False, cache: Path | None = None) -> BackboneSpec:
    """Reads the shapes off a skeleton that is built from the config alone, or from where they were kept.

    Args:
        folder: of the backbone.
        trust_remote_code: whether code in it may be run; then nothing is kept.
        cache: folder in which shapes are kept.

    Raises:
        UserError: where the folder holds no config that transformers knows.
    """
    kept = None if trust_remote_code or cache is None else _place_of_shapes(folder, cache)
    spec = kept and _kept_spec(folder, kept)
    if not spec:
        spec = _spec_of(folder, trust_remote_code=trust_remote_code)
        if kept:
            shapes = {key: value for key, value in asdict(spec).items() if key not in _NOT_KEPT}
            atomic_write(kept, lambda aside: aside.write_text(json.dumps(shapes)))
    if not spec.target_names:
        logger.warning(
            "family %s is not in the table: all-linear adapts every map of its layers", spec.model_type
        )
    return spec


_NOT_KEPT = ("folder", "trust_remote_code")


def _place_of_shapes(folder: Path, cache: Path) -> Path | None:
    """A file whose name changes with config, transformers and what is read here; None: no config."""
    try:
        digest = hashlib.sha256((folder / "config.json").read_bytes())
    except OSError:
        return None
    for source in (__file__, families.__file__):
        digest.update(Path(source).read_bytes())
    digest.update(metadata.version("transformers").encode())
    return cache / "shapes" / f"{digest.hexdigest()[:32]}.json"


def _kept_spec(folder: Path, kept: Path) -> BackboneSpec | None:
    """What was kept there; None where nothing readable is."""
    try:
        shapes: dict[str, Any] = json.loads(kept.read_text())
        shapes["linear_maps"] = {name: tuple(shape) for name, shape in shapes["linear_maps"].items()}
        shapes["shared_inputs"] = tuple(map(tuple, shapes["shared_inputs"]))
        for name in ("target_names", "embedding_shape"):
            shapes[name] = tuple(shapes[name])
        kept_weights = shapes["weights"]
        runs = tuple((count, _read_weights(layer)) for count, layer in kept_weights["runs"])
        outside = (_read_weights(kept_weights[name]) for name in ("embeddings", "others"))
        shapes["weights"] = Weights(runs, *outside)
        return BackboneSpec(folder=folder, trust_remote_code=False, **shapes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_weights(kept: list[list[int]]) -> tuple[Weight, ...]:
    return tuple(Weight(entries, bool(is_map)) for entries, is_map in kept)


def _build_skeleton(folder: Path, *, trust_remote_code: bool) -> tuple[nn.Module, int, str]:
    """The skeleton, its first position and the name of its input embedding; raises as `read_spec` does."""
    from transformers import AutoConfig, AutoModel
    from transformers.initialization import no_init_weights

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        for setting in DROPOUT_SETTINGS:
            if isinstance(getattr(config, setting, None), float):
                setattr(config, setting, 0.0)
        if config.is_encoder_decoder:
            raise ValueError(f"{config.model_type} is an encoder-decoder")
        _require_sizes(config)
        with _parameters_on_meta(), no_init_weights():
            skeleton = AutoModel.from_config(
                config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=trust_remote_code
            )
        start = first_position(config)
        embedding = skeleton.get_input_embeddings()  # raises where the model reads something else than text
    except Exception as error:  # of a config that transformers does not expect it may raise anything
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        rule = f"has no usable config.json ({reason})"
        raise UserError(
            Mistake("backbone.path", folder, rule, "give a decoder model's Hugging Face folder")
        ) from None
    skeleton.requires_grad_(False)
    for top in ("pooler", "contact_head"):  # of encoders; the head is ours
        if hasattr(skeleton, top):
            setattr(skeleton, top, None)
    name = next(name for name, module in skeleton.named_modules() if module is embedding)
    return skeleton, start, name


def _layers_of(skeleton: nn.Module) -> dict[str, nn.Module]:
    """The decoder layers by their names."""
    names = set(skeleton._no_split_modules or ())
    return {
        name: module
        for name, module in skeleton.named_modules()
        if type(module).__name__ in names and re.search(r"\.\d+$|^\d+$", name)
    }


def _spec_of(folder: Path, *, trust_remote_code: bool) -> BackboneSpec:
    from transformers.pytorch_utils import Conv1D

    skeleton, start, embedding = _build_skeleton(folder, trust_remote_code=trust_remote_code)
    config, layers = skeleton.config, _layers_of(skeleton)
    if not layers:
        rule = f"{config.model_type} does not name its decoder layers"
        raise UserError(Mistake("backbone.path", folder, rule, "use another model"))
    linear_maps = {
        f"{layer}.{name}": _map_shape(module)
        for layer, block in layers.items()
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    spec = BackboneSpec(
        folder=folder,
        trust_remote_code=trust_remote_code,
        model_type=config.model_type,
        linear_maps=linear_maps,
        target_names=TARGETS.get(config.model_type, ()),
        layers=len(layers),
        last_layer=list(layers)[-1],
        shared_inputs=_shared_inputs(layers),
        causal=any(getattr(module, "is_causal", False) for module in skeleton.modules()),
        packable=config.model_type in PACKABLE,
        first_position=start,
        parameters=sum(p.numel() for p in skeleton.parameters()),
        layer_parameters=max(sum(p.numel() for p in layer.parameters()) for layer in layers.values()),
        hidden_size=config.hidden_size,
        output_size=getattr(config, "word_embed_proj_dim", config.hidden_size),
        query_size=heads * size,
        key_size=(getattr(config, "num_key_value_heads", None) or heads) * size,
        upcast_norms=any("RMSNorm" in type(module).__name__ for module in skeleton.modules()),
        ffn_size=max(d for shape in linear_maps.values() for d in shape),
        context=config.max_position_embeddings,
        embedding=embedding,
        embedding_shape=tuple(skeleton.get_submodule(embedding).weight.shape),
        weights=_weights(skeleton, layers, linear_maps),
    )
    vars(spec)["skeleton"] = skeleton  # built already
    return spec


def _weights(skeleton: nn.Module, layers: Mapping[str, nn.Module], linear_maps: Iterable[str]) -> Weights:
    """Every weight, a tied one once."""
    maps = {id(skeleton.get_submodule(name).weight) for name in linear_maps}
    by_layer = [
        tuple(Weight(p.numel(), id(p) in maps) for p in layer.parameters()) for layer in layers.values()
    ]
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    outside = {id(p): Weight(p.numel()) for p in skeleton.parameters() if id(p) not in inside}
    tables = [id(m.weight) for m in skeleton.modules() if isinstance(m, nn.Embedding)]
    embeddings = tuple(outside.pop(table) for table in dict.fromkeys(tables) if table in outside)
    runs = tuple((len(list(run)), layer) for layer, run in groupby(by_layer))
    return Weights(runs, embeddings, tuple(outside.values()))


def _require_sizes(config: "PreTrainedConfig") -> None:
    """The sizes that time and memory grow with; a skeleton of a billion layers would never be finished.

    Raises:
        ValueError: where one is missing or beyond any model.
    """
    for name, most in MAX_SIZES.items():
        value = getattr(config, name, None)
        if not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{name} is {value!r}, not a whole number from 1 to {most:,}")


def _shared_inputs(layers: Mapping[str, nn.Module]) -> tuple[tuple[str, ...], ...]:
    """Groups of linear maps that lie in one module and that the families' table names together."""
    return tuple(
        tuple(f"{layer}.{name}.{child}" if name else f"{layer}.{child}" for child in names)
        for layer, block in layers.items()
        for name, module in block.named_modules()
        for names in SHARED_INPUTS
        if all(hasattr(module, child) for child in names)
    )


def _map_shape(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of a linear map; GPT-2's Conv1D keeps its weight transposed."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return module.nf, module.nx
    return module.out_features, module.in_features


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Inside, new parameters have a shape but no memory; buffers (rotary frequencies) are computed."""
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param if param is None else nn.Parameter(param.to("meta"), requires_grad=False))

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register
