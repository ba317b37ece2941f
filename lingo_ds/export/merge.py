"""The merged model: W + scale P lam Q in the backbone's own files, shard by shard, and what rounding took."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from lingo_ds.data.task import Task
from lingo_ds.export.adapter_card import KeptSite, SavedAdapter
from lingo_ds.export.model_card import README, CardNotes, Form, model_card
from lingo_ds.models.backbone.backbone import DTYPE_NAMES, DTYPES
from lingo_ds.models.backbone.families import CLASSIFIERS
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.models.backbone.weight_files import WeightFiles
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write

WEIGHTS, INDEX, HEAD, REPORT = (
    "model.safetensors", "model.safetensors.index.json", "head.safetensors", "merge.json",
)  # fmt: skip
PROBLEM_TYPES = {"multilabel": "multi_label_classification", "regression": "regression"}
"""transformers' words for kinds of task; all others are one to it."""

MAX_NAMED_MAPS = 3
"""Maps with the largest losses that are named one by one."""


class Rounding(NamedTuple):
    """What writing W + delta in the file's dtype took from it.

    Attributes:
        largest: absolute difference of one entry.
        lost: sum of squared differences.
        delta: sum of squares of the adapter's term.
        entries: of the map.
    """

    largest: float = 0.0
    lost: float = 0.0
    delta: float = 0.0
    entries: int = 0

    @property
    def relative(self) -> float:
        """RMS of the difference over RMS of the adapter's term; 0 where there is neither."""
        return math.sqrt(self.lost / self.delta) if self.delta else 0.0

    def __add__(self, other: "Rounding") -> "Rounding":
        return Rounding(max(self.largest, other.largest), *(a + b for a, b in zip(self[1:], other[1:])))  # noqa: B905

    def to_dict(self) -> dict[str, float]:
        """As plain JSON values."""
        rms = [math.sqrt(part / self.entries) if self.entries else 0.0 for part in (self.lost, self.delta)]
        return {"largest": self.largest, "rms": rms[0], "delta_rms": rms[1], "relative_rms": self.relative}


class Merged(NamedTuple):
    """What was written, and the rounding of every adapted map."""

    form: Form
    dtype: str
    shards: int
    rounding: dict[str, Rounding]

    @property
    def total(self) -> Rounding:
        """Over all maps."""
        return sum(self.rounding.values(), Rounding())

    def worst(self) -> list[str]:
        """Names of the maps that lost most of their adapter's term, worst first."""
        return sorted(self.rounding, key=lambda name: -self.rounding[name].relative)[:MAX_NAMED_MAPS]

    def lines(self) -> Iterator[str]:
        """The losses for the terminal."""
        yield f"rounding to {self.dtype} took {self.total.relative:.2%} of the adapters' change (RMS)"
        if self.total.lost:
            for name in self.worst():
                one = self.rounding[name]
                yield f"  {name}: {one.relative:.2%}, at most {one.largest:.2e} of one weight"


def save_merged(
    folder: Path,
    adapter: SavedAdapter,
    *,
    spec: BackboneSpec,
    backbone_path: str,
    dtype: str | None,
    shard_bytes: int,
    notes: CardNotes,
) -> Merged:
    """Writes the merged model in one step: a classifier where transformers has this very one, else its base.

    No more is in memory at once than one shard and one map in fp32; what is not adapted is copied from the
    backbone's memory-mapped files.

    Args:
        folder: is replaced whole.
        adapter: any.
        spec: of the backbone it belongs to.
        backbone_path: how others find the backbone.
        dtype: fp32, bf16 or fp16; None: of each weight in the backbone's files.
        shard_bytes: of a weight file at most, where a single weight is not larger.
        notes: for the model card.

    Raises:
        UserError: where the backbone's files are damaged, or it has no tokenizer.
    """
    files = WeightFiles(spec.folder, spec.skeleton)
    form: Form = "classifier" if spec.model_type in CLASSIFIERS and adapter.card.pooling == "last" else "base"
    weights = _Weights(adapter, spec, files, form=form, dtype=DTYPES[dtype] if dtype else None)
    shards = split_torch_state_dict_into_shards(weights.empty, max_shard_size=shard_bytes)
    tokenizer, pad = _tokenizer(spec)
    merged: list[Merged] = []

    def write(aside: Path) -> None:
        aside.mkdir()
        for name, keys in shards.filename_to_tensors.items():
            save_file({key: weights.value(key) for key in keys}, aside / name, metadata={"format": "pt"})
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            (aside / INDEX).write_text(json.dumps(index, indent=2))
        if form == "base":
            head = adapter.layout.head(adapter.values).contiguous().clone()
            save_file({"score.weight": head}, aside / HEAD, metadata={"format": "pt"})
        _config(
            spec, form, task=adapter.card.task, learned=adapter.layout.token_shape[0],
            pad=pad, dtype=weights.main_dtype,
        ).save_pretrained(aside)  # fmt: skip
        tokenizer.save_pretrained(aside)
        dtype_name = DTYPE_NAMES.get(weights.main_dtype, str(weights.main_dtype))
        merged.append(Merged(form, dtype_name, len(shards.filename_to_tensors), weights.rounding))
        (aside / REPORT).write_text(json.dumps(_report(merged[0], adapter), indent=2))
        remarks = tuple(_remarks(merged[0], pad))
        text = model_card(adapter, spec, form=form, backbone_path=backbone_path, notes=notes, remarks=remarks)
        (aside / README).write_text(text, encoding="utf-8")

    atomic_write(folder, write)
    return merged[0]


class _Weights:
    """Every weight of the merged model by its name there, made when it is asked for."""

    def __init__(
        self,
        adapter: SavedAdapter,
        spec: BackboneSpec,
        files: WeightFiles,
        *,
        form: Form,
        dtype: torch.dtype | None,
    ):
        self._scale, self._dtype, self._spec = adapter.scale, dtype, spec
        self.rounding: dict[str, Rounding] = {}
        prefix = f"{spec.skeleton.base_model_prefix}." if form == "classifier" else ""
        kept = {site.site.name: site for site in adapter.kept()}
        self._sources: dict[str, Callable[[], Tensor]] = {}
        self._kept: dict[str, KeptSite] = {}
        for name, value in spec.skeleton.state_dict().items():
            in_files = name in files.keys
            self._sources[prefix + name] = (lambda name=name: files.shaped(name)) if in_files else value.clone
            if name == f"{spec.embedding}.weight" and adapter.layout.token_size:
                self._sources[prefix + name] = lambda name=name: self._with_tokens(
                    files.shaped(name), adapter
                )
            if name.endswith(".weight") and (site := kept.get(name.removesuffix(".weight"))):
                self._kept[prefix + name] = site
        for name in _left_out(spec) if form == "base" else ():
            if files.beside(name) is not None:
                self._sources[name] = lambda name=name: files.beside(name)
        if form == "classifier":
            head = adapter.layout.head(adapter.values)
            self._sources["score.weight"] = lambda: head
        types = [value.dtype for value in self.empty.values() if value.is_floating_point()]
        self.main_dtype = max(types, key=types.count)

    @cached_property
    def empty(self) -> dict[str, Tensor]:
        """Every weight's shape and dtype, without memory."""
        sources = ((key, source()) for key, source in self._sources.items())
        return {key: torch.empty(v.shape, dtype=self._target(v), device="meta") for key, v in sources}

    def value(self, key: str) -> Tensor:
        """One weight, merged and rounded."""
        value = self._sources[key]()
        target = self._target(value)
        if key not in self._kept:
            return self._require_finite(key, value.to(target).contiguous())
        site, _, views = self._kept[key]
        whole = value.to(torch.float32, copy=True)
        p = views.p * views.lam[:, None] if len(views.lam) else views.p
        transposed = isinstance(self._spec.skeleton.get_submodule(site.name), Conv1D)
        (whole.T if transposed else whole).addmm_(p.T, views.q, alpha=self._scale)
        rounded = self._require_finite(key, whole.to(target))
        lost, gram = whole - rounded, (p.double() @ p.double().T) * (views.q.double() @ views.q.double().T)
        self.rounding[site.name] = Rounding(
            largest=float(torch.linalg.vector_norm(lost, torch.inf)),
            lost=float(torch.linalg.vector_norm(lost)) ** 2,
            delta=self._scale**2 * max(float(gram.sum()), 0.0),
            entries=lost.numel(),
        )
        return rounded

    @staticmethod
    def _with_tokens(embedding: Tensor, adapter: SavedAdapter) -> Tensor:
        """(vocabulary + 5, size): the learned nucleotides' rows behind the backbone's."""
        return torch.cat([embedding, adapter.layout.tokens(adapter.values).to(embedding.dtype)])

    def _require_finite(self, key: str, value: Tensor) -> Tensor:
        if value.dtype == torch.float16 and not value.isfinite().all():
            rule = f"does not reach as far as {key}"
            raise UserError(Mistake("--dtype", "fp16", rule, "write bf16 or fp32"))
        return value

    def _target(self, value: Tensor) -> torch.dtype:
        return self._dtype if self._dtype and value.is_floating_point() else value.dtype


def _left_out(spec: BackboneSpec) -> list[str]:
    """Names under which ESM's and BERT's base models keep what a text classifier has no use for."""
    return (
        ["contact_head.regression.weight", "contact_head.regression.bias"] if spec.model_type == "esm" else []
    )


def _config(
    spec: BackboneSpec, form: Form, *, task: Task, learned: int, pad: int | None, dtype: torch.dtype
) -> Any:
    """The backbone's config, read anew because its skeleton runs without dropout; `learned` tokens more.

    What transformers has no word for is kept in fields of its own: `thresholds`; `target_mean` and
    `target_scale` of a regression, whose output o means the value mean + scale o: the head has no bias.
    """
    config = AutoConfig.from_pretrained(spec.folder)
    config.dtype, config.vocab_size = dtype, spec.embedding_shape[0] + learned
    if hasattr(config, "auto_map"):  # names code that this folder does not have
        del config.auto_map
    if form == "base":
        config.architectures = [type(spec.skeleton).__name__]
        return config
    config.architectures = [AutoModelForSequenceClassification._model_mapping[type(config)].__name__]
    config.id2label = dict(enumerate(task.output_names))
    config.label2id = {name: place for place, name in enumerate(task.output_names)}
    config.problem_type = PROBLEM_TYPES.get(task.kind, "single_label_classification")
    own = {"thresholds": task.thresholds, "target_mean": task.mean, "target_scale": task.scale}
    for field, numbers in own.items():
        if numbers is not None:
            setattr(config, field, list(numbers))
    config.pad_token_id = pad
    return config


def _tokenizer(spec: BackboneSpec) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The backbone's tokenizer, padding on the right, and an id that no text ends with, to pad with."""
    tokenizer = read_tokenizer(spec.folder)
    tokenizer.padding_side = "right"
    last = tokenizer("A")["input_ids"][-1:]
    for token in (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token):
        number = None if token is None else tokenizer.convert_tokens_to_ids(token)
        if number is not None and [number] != last and number < spec.skeleton.config.vocab_size:
            tokenizer.pad_token = token
            return tokenizer, number
    return tokenizer, None


def _report(merged: Merged, adapter: SavedAdapter) -> dict[str, Any]:
    card: Mapping[str, Any] = adapter.card.model_dump(mode="json")
    return {
        "form": merged.form,
        "dtype": merged.dtype,
        "shards": merged.shards,
        "rounding": {
            "total": merged.total.to_dict(),
            "maps": {name: one.to_dict() for name, one in merged.rounding.items()},
        },
        "adapter": card,
    }


def _remarks(merged: Merged, pad: int | None) -> Iterator[str]:
    total = merged.total
    yield (
        "## Rounding\n\nThe adapters were added to the weights in fp32 and rounded to "
        f"{merged.dtype}, which took {total.relative:.2%} (RMS) of their change; by map in {REPORT}."
    )
    if merged.form == "classifier" and pad is None:
        yield "The tokenizer has no token to pad with: give one sequence at a time."
