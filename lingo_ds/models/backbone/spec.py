"""Shapes of a backbone: its linear maps, layers and weights.

They are cheap to read for any size and needed before anything is loaded. Building the module that they are
read from takes seconds, which is why they are cached.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lingo_ds.models.backbone import families, skeleton, weight_sizes
from lingo_ds.models.backbone.families import FAMILIES, PACKABLE, SHARED_INPUTS, TARGETS
from lingo_ds.models.backbone.known_families import unusable_mistake
from lingo_ds.models.backbone.own_code import runs_own_code, warn_of_own_code
from lingo_ds.models.backbone.skeleton import build_skeleton, decoder_layers, largest, map_shape
from lingo_ds.models.backbone.supported import read_config, require_supported
from lingo_ds.models.backbone.weight_sizes import Weight, Weights
from lingo_ds.utils.errors import UserError
from lingo_ds.utils.files import atomic_write

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackboneSpec:
    """Shapes of a frozen language model.

    Attributes:
        folder: folder of its files.
        trust_remote_code: whether code in the folder may be run.
        model_type: family name, e.g. `llama`.
        linear_maps: (d_out, d_in) of every linear map inside the decoder layers, by module name.
        target_names: names of the maps that `all-linear` means in this family; empty: every map.
        layers: number of decoder layers.
        last_layer: module name of the one whose output is the last hidden state.
        shared_inputs: names of linear maps of one module that read the same tensor.
        causal: False in an encoder, where a token sees those after it.
        packable: whether packed attention is known to give what padded batches give.
        first_position: position of a text's first token, in learned position embeddings.
        parameters: entries of all weights.
        layer_parameters: entries of the largest decoder layer.
        hidden_size: width of the residual stream.
        output_size: width of the last hidden states.
        query_size: width of the queries of all heads.
        key_size: width of the keys of all heads, which several query heads may share.
        upcast_norms: whether norms compute in fp32 and keep their input in it (transformers' RMS norms).
        ffn_size: widest side of a linear map.
        experts: experts in each layer that has some; 0: the model is dense.
        expert_width: width inside all experts together that one token passes.
        plain_embedding: whether the input embedding does nothing but look rows up.
        context: longest input in tokens.
        embedding: module name of the input embedding.
        embedding_shape: (vocabulary, size) of the input embedding; OPT may widen its rows afterwards.
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
    experts: int
    expert_width: int
    plain_embedding: bool
    context: int
    embedding: str
    embedding_shape: tuple[int, int]
    weights: Weights

    @cached_property
    def skeleton(self) -> "PreTrainedModel":
        """The module with parameters on the meta device and real buffers; loading fills it."""
        return build_skeleton(self.folder, trust_remote_code=self.trust_remote_code).module

    @property
    def softcap(self) -> float | None:
        """Bound on attention's scores, as Gemma 2 has it; None: there is none."""
        return getattr(self.skeleton.config, "attn_logit_softcapping", None)

    @property
    def windows_ahead(self) -> bool:
        """Whether there are layers whose tokens see some tokens after them, and not all."""
        return not self.causal and getattr(self.skeleton.config, "sliding_window", None) is not None

    @property
    def head_size(self) -> int:
        """Width of one head's queries."""
        return self.query_size // int(self.skeleton.config.num_attention_heads)

    @property
    def layer_classes(self) -> tuple[type[nn.Module], ...]:
        """Classes of the decoder layers."""
        return tuple({type(layer) for layer in decoder_layers(self.skeleton).values()})


def read_spec(folder: Path, *, trust_remote_code: bool = False, cache: Path | None = None) -> BackboneSpec:
    """Reads the shapes from a skeleton that is built from the config alone, or from the cache.

    Args:
        folder: the backbone's files.
        trust_remote_code: whether code among them may be run; then nothing is cached.
        cache: folder of cached shapes.

    Raises:
        UserError: where the folder holds no config that transformers knows.
    """
    config = read_config(folder)
    require_supported(config, folder)
    cached = None if trust_remote_code or cache is None else _cache_path(folder, cache)
    spec = _read_cached(folder, cached) if cached else None
    if spec is None:
        spec = _build_spec(folder, trust_remote_code=trust_remote_code)
        if cached:
            shapes = {key: value for key, value in asdict(spec).items() if key not in _NOT_CACHED}
            atomic_write(cached, lambda temporary: temporary.write_text(json.dumps(shapes)))
    warn_of_own_code(config, trust_remote_code=trust_remote_code)
    _remark_on_family(spec)
    return spec


def _remark_on_family(spec: BackboneSpec) -> None:
    """Says what is not tested of a family, and which of its weights nothing is added to."""
    if not spec.target_names:
        logger.warning(
            "family %s is not tested (docs/models.md): all-linear adapts every map of its layers, "
            "and batches are padded",
            spec.model_type,
        )
    elif FAMILIES[spec.model_type].experts:
        logger.info(
            "family %s: adapters are on the attention, the %d experts of a layer stay as they are",
            spec.model_type,
            spec.experts,
        )


_NOT_CACHED = ("folder", "trust_remote_code")


def _cache_path(folder: Path, cache: Path) -> Path | None:
    """A file whose name changes with config, transformers and what is read here; None: no config."""
    try:
        digest = hashlib.sha256((folder / "config.json").read_bytes())
    except OSError:
        return None
    for source in (__file__, families.__file__, skeleton.__file__, weight_sizes.__file__):
        digest.update(Path(source).read_bytes())
    digest.update(metadata.version("transformers").encode())
    return cache / "shapes" / f"{digest.hexdigest()[:32]}.json"


def _read_cached(folder: Path, path: Path) -> BackboneSpec | None:
    """The cached shapes; None where nothing readable is."""
    try:
        shapes: dict[str, Any] = json.loads(path.read_text())
        shapes["linear_maps"] = {name: tuple(shape) for name, shape in shapes["linear_maps"].items()}
        shapes["shared_inputs"] = tuple(map(tuple, shapes["shared_inputs"]))
        for name in ("target_names", "embedding_shape"):
            shapes[name] = tuple(shapes[name])
        weights = shapes["weights"]
        runs = tuple((count, _read_weights(layer)) for count, layer in weights["runs"])
        embeddings, others = _read_weights(weights["embeddings"]), _read_weights(weights["others"])
        shapes["weights"] = Weights(runs, embeddings, others)
        return BackboneSpec(folder=folder, trust_remote_code=False, **shapes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _read_weights(cached: list[list[int]]) -> tuple[Weight, ...]:
    return tuple(Weight(entries, bool(is_map)) for entries, is_map in cached)


def _build_spec(folder: Path, *, trust_remote_code: bool) -> BackboneSpec:
    built = build_skeleton(folder, trust_remote_code=trust_remote_code)
    module, layers = built.module, decoder_layers(built.module)
    family = module.config.model_type
    if not layers:
        raise UserError(unusable_mistake(folder, family, ValueError("it does not name its decoder layers")))
    of_transformers = not runs_own_code(module)
    linear_maps = _linear_maps(layers)
    vocabulary, size = module.get_submodule(built.embedding).get_parameter("weight").shape
    spec = BackboneSpec(
        folder=folder,
        trust_remote_code=trust_remote_code,
        model_type=family,
        linear_maps=linear_maps,
        target_names=TARGETS.get(family, ()) if of_transformers else (),
        layers=len(layers),
        last_layer=list(layers)[-1],
        shared_inputs=_shared_inputs(layers),
        causal=any(getattr(inner, "is_causal", False) for inner in module.modules()),
        packable=family in PACKABLE and of_transformers,
        first_position=built.first_position,
        parameters=sum(p.numel() for p in module.parameters()),
        layer_parameters=max(sum(p.numel() for p in layer.parameters()) for layer in layers.values()),
        upcast_norms=any("RMSNorm" in type(inner).__name__ for inner in module.modules()),
        ffn_size=max(d for shape in linear_maps.values() for d in shape),
        plain_embedding=type(module.get_submodule(built.embedding)).forward is nn.Embedding.forward,
        embedding=built.embedding,
        embedding_shape=(vocabulary, size),
        weights=_weights(module, layers, linear_maps),
        **_widths(module.config),
        **_experts(module.config),
        context=_context(module),
    )
    vars(spec)["skeleton"] = module  # built already
    return spec


def _linear_maps(layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of every linear map inside the layers, by module name."""
    from transformers.pytorch_utils import Conv1D

    return {
        f"{layer}.{name}": map_shape(module)
        for layer, block in layers.items()
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and _is_map(module)
    }


def _is_map(module: nn.Module) -> bool:
    """Whether a subclass of a linear map is one too: Falcon's is; Llama 4's router returns something else."""
    of_its_own = "forward" in vars(type(module)) and not type(module).__module__.startswith("torch.")
    return not of_its_own or type(module).__name__.endswith(("Linear", "Conv1D"))


def _widths(config: Any) -> dict[str, int]:
    """Fields of `BackboneSpec` that a config tells, whose settings differ from family to family."""
    heads = config.num_attention_heads
    size = largest(config, "head_dim") or config.hidden_size // heads
    return {
        "hidden_size": config.hidden_size,
        "output_size": getattr(config, "word_embed_proj_dim", config.hidden_size),
        "query_size": heads * size,
        "key_size": (largest(config, "num_key_value_heads") or heads) * size,
    }


def _experts(config: Any) -> dict[str, int]:
    """How many experts a layer has and how wide those of a token are, by whichever names a family uses."""
    if config.model_type not in families.EXPERTS:
        return {"experts": 0, "expert_width": 0}
    count = getattr(config, "num_local_experts", None) or config.num_experts
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    shared = config.model_type == "llama4_text"  # one more expert, which every token passes
    return {"experts": count, "expert_width": (config.num_experts_per_tok + shared) * width}


def _context(module: "PreTrainedModel") -> int:
    """Longest input in tokens; of learned positions that are counted from behind a padding id, fewer."""
    unused = [
        inner.padding_idx + 1
        for name, inner in module.named_modules()
        if name.endswith("position_embeddings") and getattr(inner, "padding_idx", None) is not None
    ]
    return int(module.config.max_position_embeddings) - max(unused, default=0)


def _weights(
    module: "PreTrainedModel", layers: Mapping[str, nn.Module], linear_maps: Iterable[str]
) -> Weights:
    """Sizes of every weight, of a tied one once."""
    maps = {id(module.get_submodule(name).weight) for name in linear_maps}
    by_layer = [
        tuple(Weight(p.numel(), id(p) in maps) for p in layer.parameters()) for layer in layers.values()
    ]
    inside = {id(p) for layer in layers.values() for p in layer.parameters()}
    outside = {id(p): Weight(p.numel()) for p in module.parameters() if id(p) not in inside}
    tables = [id(inner.weight) for inner in module.modules() if isinstance(inner, nn.Embedding)]
    embeddings = tuple(outside.pop(table) for table in dict.fromkeys(tables) if table in outside)
    runs = tuple((len(list(run)), layer) for layer, run in groupby(by_layer))
    return Weights(runs, embeddings, tuple(outside.values()))


def _shared_inputs(layers: Mapping[str, nn.Module]) -> tuple[tuple[str, ...], ...]:
    """Groups of linear maps that lie in one module and that the families' table names together."""
    return tuple(
        tuple(f"{layer}.{name}.{child}" if name else f"{layer}.{child}" for child in names)
        for layer, block in layers.items()
        for name, module in block.named_modules()
        for names in SHARED_INPUTS
        if all(hasattr(module, child) for child in names)
    )
