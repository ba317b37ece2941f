"""The merged model: W + scale P lam Q in the backbone's own files, shard by shard."""

import json
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from lingo_ds.data.task import Task
from lingo_ds.export.adapter_card import KeptSite, SavedAdapter
from lingo_ds.export.model_card import README, CardNotes, Form, model_card
from lingo_ds.export.rounding import Rounding
from lingo_ds.models.backbone.backbone import DTYPE_NAMES, DTYPES
from lingo_ds.models.backbone.families import CLASSIFIERS
from lingo_ds.models.backbone.spec import BackboneSpec
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.models.backbone.weight_files import WeightFiles
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write

INDEX, HEAD, REPORT = "model.safetensors.index.json", "head.safetensors", "merge.json"

PROBLEM_TYPES = {"multilabel": "multi_label_classification", "regression": "regression"}
"""The names that transformers has for kinds of task; all others are one kind there."""

MAX_NAMED_MAPS = 3
"""Maps with the largest losses that are named one by one."""


class Merged(NamedTuple):
    """What was written: format, dtype, number of weight files, and the rounding of every adapted map."""

    form: Form
    dtype: str
    shards: int
    rounding: dict[str, Rounding]

    @property
    def total(self) -> Rounding:
        """The rounding of all maps together."""
        return sum(self.rounding.values(), Rounding())

    def worst(self) -> list[str]:
        """Names of the maps that lost most of their adapter's term, worst first."""
        return sorted(self.rounding, key=lambda name: -self.rounding[name].relative)[:MAX_NAMED_MAPS]

    def lines(self) -> Iterator[str]:
        """The losses as lines for the terminal."""
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
        folder: the folder to write; an earlier one is replaced as a whole.
        adapter: the adapter to merge.
        spec: shapes of the backbone it belongs to.
        backbone_path: how others find the backbone.
        dtype: fp32, bf16 or fp16; None: the dtype of each weight in the backbone's files.
        shard_bytes: most bytes of a weight file, unless a single weight is larger.
        notes: what the model card says beside what the adapter knows.

    Raises:
        UserError: where the backbone's files are damaged, or it has no tokenizer.
    """
    files = WeightFiles(spec.folder, spec.skeleton)
    form: Form = "classifier" if spec.model_type in CLASSIFIERS and adapter.card.pooling == "last" else "base"
    weights = _Weights(adapter, spec, files, form=form, dtype=DTYPES[dtype] if dtype else None)
    tokenizer, pad = _tokenizer(spec, notes.pad)
    merged: list[Merged] = []

    def write(aside: Path) -> None:
        aside.mkdir()
        shards = weights.save(aside, shard_bytes=shard_bytes)
        learned = adapter.layout.token_shape[0]
        config = _config(
            spec, form, task=adapter.card.task, learned=learned, pad=pad, dtype=weights.main_dtype
        )
        config.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        merged.append(Merged(form, weights.dtype_name, shards, weights.rounding))
        (aside / REPORT).write_text(json.dumps(_report(merged[0], adapter), indent=2))
        remarks = tuple(_remarks(merged[0], learned=learned))
        text = model_card(
            adapter,
            spec,
            form=form,
            backbone_path=backbone_path,
            notes=notes,
            remarks=remarks,
        )
        (aside / README).write_text(text, encoding="utf-8")

    atomic_write(folder, write)
    return merged[0]


class _Weights:
    """Every weight of the merged model by its name there, computed when it is asked for."""

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
        self._embedding, self._tokens = (
            f"{prefix}{spec.embedding}.weight",
            adapter.layout.tokens(adapter.values),
        )
        for name, value in spec.skeleton.state_dict().items():
            self._sources[prefix + name] = partial(files.shaped, name) if name in files.keys else value.clone
            if name.endswith(".weight") and (site := kept.get(name.removesuffix(".weight"))):
                self._kept[prefix + name] = site
        for name in _left_out(spec) if form == "base" else ():
            if (beside := files.beside(name)) is not None:
                self._sources[name] = beside.clone
        head = adapter.layout.head(adapter.values).contiguous()
        self._head_beside = head.clone() if form == "base" else None
        if form == "classifier":
            self._sources["score.weight"] = head.clone
        types = [value.dtype for value in self.empty.values() if value.is_floating_point()]
        self.main_dtype = max(types, key=types.count)

    def save(self, folder: Path, *, shard_bytes: int) -> int:
        """Writes one or more weight files, with an index where there are several. Returns how many.

        The head of a base model lies in a file of its own and is not counted.
        """
        if self._head_beside is not None:
            save_file({"score.weight": self._head_beside}, folder / HEAD, metadata={"format": "pt"})
        shards = split_torch_state_dict_into_shards(self.empty, max_shard_size=shard_bytes)
        for name, keys in shards.filename_to_tensors.items():
            save_file({key: self.value(key) for key in keys}, folder / name, metadata={"format": "pt"})
        if shards.is_sharded:
            index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
            (folder / INDEX).write_text(json.dumps(index, indent=2))
        return len(shards.filename_to_tensors)

    @property
    def dtype_name(self) -> str:
        """The name of the dtype that most weights have."""
        return DTYPE_NAMES.get(self.main_dtype, str(self.main_dtype))

    @cached_property
    def empty(self) -> dict[str, Tensor]:
        """Every weight's shape and dtype, without memory."""
        made = {}
        for key, source in self._sources.items():
            value = source()
            shape = list(value.shape)
            if key == self._embedding:
                shape[0] += len(self._tokens)
            made[key] = torch.empty(shape, dtype=self._target(value), device="meta")
        return made

    def value(self, key: str) -> Tensor:
        """One weight, merged and rounded."""
        value = self._sources[key]()
        target = self._target(value)
        if key == self._embedding and len(self._tokens):
            value = torch.cat([value.to(target), self._rounded_tokens(target)])
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

    def _rounded_tokens(self, target: torch.dtype) -> Tensor:
        """(5, size), the learned nucleotides' rows, which lie behind the backbone's."""
        rounded = self._tokens.to(target)
        lost = self._tokens - rounded
        self.rounding[self._spec.embedding] = Rounding(
            largest=float(torch.linalg.vector_norm(lost, torch.inf)),
            lost=float(torch.linalg.vector_norm(lost)) ** 2,
            delta=float(torch.linalg.vector_norm(self._tokens)) ** 2,
            entries=lost.numel(),
        )
        return rounded

    def _require_finite(self, key: str, value: Tensor) -> Tensor:
        if value.dtype == torch.float16 and not value.isfinite().all():
            rule = f"does not reach as far as {key}"
            raise UserError(Mistake("--dtype", "fp16", rule, "write bf16 or fp32"))
        return value

    def _target(self, value: Tensor) -> torch.dtype:
        return self._dtype if self._dtype and value.is_floating_point() else value.dtype


def _left_out(spec: BackboneSpec) -> list[str]:
    """Names of weights that ESM's base model has and a skeleton without contact head lacks."""
    names = ["contact_head.regression.weight", "contact_head.regression.bias"]
    return names if spec.model_type == "esm" else []


def _config(
    spec: BackboneSpec, form: Form, *, task: Task, learned: int, pad: int | None, dtype: torch.dtype
) -> Any:
    """The backbone's config with `learned` tokens more, read anew because the skeleton runs without dropout.

    What transformers has no field for is kept in fields of our own: `thresholds`; `target_mean` and
    `target_scale` of a regression, whose output o stands for mean + scale * o: the head has no bias.
    """
    config = AutoConfig.from_pretrained(spec.folder)
    config.dtype, config.vocab_size = dtype, spec.embedding_shape[0] + learned
    if hasattr(config, "auto_map"):  # names code that this folder does not have
        del config.auto_map
    if form == "base":
        config.architectures = [type(spec.skeleton).__name__]
        return config
    config.architectures = [MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[config.model_type]]
    config.id2label = dict(enumerate(task.output_names))
    config.label2id = {name: place for place, name in enumerate(task.output_names)}
    config.problem_type = PROBLEM_TYPES.get(task.kind, "single_label_classification")
    own = {"thresholds": task.thresholds, "target_mean": task.mean, "target_scale": task.scale}
    for field, numbers in own.items():
        if numbers is not None:
            setattr(config, field, list(numbers))
    config.pad_token_id = pad
    return config


def _tokenizer(spec: BackboneSpec, pad: str | None) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The backbone's tokenizer, padding on the right with the token `pad`, and its id."""
    tokenizer = read_tokenizer(spec.folder)
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "right"  # the second one is saved
    if pad is None:
        return tokenizer, None
    tokenizer.pad_token = pad
    return tokenizer, tokenizer.pad_token_id


def _report(merged: Merged, adapter: SavedAdapter) -> dict[str, Any]:
    return {
        "form": merged.form,
        "dtype": merged.dtype,
        "shards": merged.shards,
        "rounding": {
            "total": merged.total.to_dict(),
            "maps": {name: one.to_dict() for name, one in merged.rounding.items()},
        },
        "adapter": adapter.card.model_dump(mode="json"),
    }


def _remarks(merged: Merged, *, learned: int) -> Iterator[str]:
    total, beside = (
        merged.total,
        ", and the learned embeddings put behind the vocabulary's," if learned else "",
    )
    yield (
        f"## Rounding\n\nThe adapters were added to the weights in fp32{beside} and rounded to "
        f"{merged.dtype}, which took {total.relative:.2%} (RMS) of their change; by map in {REPORT}."
    )
