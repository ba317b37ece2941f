"""A backbone's weight files: which file holds what, and reads of any contiguous range of any weight."""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lingo_ds.models.backbone.byte_ranges import SAFETENSORS_DTYPES, RangeReader, why_unreadable
from lingo_ds.models.backbone.expert_weights import MIXTRAL_ROUTER, Parts, expert_parts
from lingo_ds.models.backbone.own_code import own_code, runs_own_code
from lingo_ds.models.backbone.supported import INDEX, UNQUANTISED, WEIGHTS, read_index, weights_mistake
from lingo_ds.models.ops.host_memory import Arena
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write, read_ends

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lingo_ds.models.backbone.spec import BackboneSpec

logger = logging.getLogger(__name__)

HEAD_KEYS = (
    r"(lm_head|embed_out|score|classifier|cls|pooler|contact_head|qa_outputs|"
    r".*inv_freq|.*masked_bias|.*att(n|ention)\.bias)\b"
)
"""Weights of checkpoints that the base model lacks: task heads, and buffers that are computed."""

QUANTISED_KEYS = (".qweight", ".qzeros", ".scales", ".weight_scale", ".weight_scale_inv", ".weight_packed")
QUANTISED_DTYPES = ("I8", "U8", "I32", "U32", "F8_E4M3", "F8_E5M2")
"""Endings of names, and types in another shape, by which weights are known that were quantised."""

ALIGN_ENTRIES = 64
"""Entries, at least a cache line of every dtype, at whose multiples a whole weight begins in memory."""


class WeightFiles:
    """The safetensors files of one backbone: ranges by plain reads, whole weights by memory map.

    Raises:
        UserError: where files or weights are missing, damaged, of another shape, or a format that runs code.
    """

    def __init__(self, folder: Path, module: "PreTrainedModel", *, warn: bool = True):
        """Finds every weight of `module`; with `warn` a warning names weights that it has no place for."""
        self._folder, self._module, self._warn = folder, module, warn
        self._open: dict[str, safe_open] = {}
        self._file_of = self._index()
        self._parts: dict[str, Parts] = {}  # of weights that the files hold in several parts
        self._key_of = self._match(module)
        self._ranges = RangeReader(folder / file for file in set(self._file_of.values()))

    @property
    def keys(self) -> dict[str, str]:
        """Name in the file of each of the module's weights, or of its first part."""
        return self._key_of

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        """Fills `out`, flat, of any dtype and on any device, with the weight's entries from `start` on."""
        if (parts := self._parts.get(name)) is None:
            return self._read(self._key_of[name], out, start)
        pieces = list(parts.pieces(start, len(out)))
        for piece, room in zip(pieces, out.split([piece.entries for piece in pieces]), strict=True):
            self._read(piece.key, room, piece.start)

    def _read(self, key: str, out: Tensor, start: int) -> None:
        self._ranges.read(self._folder / self._file_of[key], key, out, start)

    def read_part(self, part: Tensor, name: str, start: int, count: int) -> None:
        """Fills `part` with entries of a weight of `count` from `start` on; those beyond its end are 0."""
        own = max(0, min(len(part), count - start))
        self.read_into(part[:own], name, min(start, count))
        part[own:].zero_()

    def rows(self, name: str, places: Sequence[int]) -> Tensor:
        """Rows of the module's weight `name`, (places, row length) fp32; only theirs are read from disk."""
        return self.shaped(name)[list(places)].float()

    def shaped(self, name: str) -> Tensor:
        """The module's weight `name` in its own shape and the file's dtype, as a view of the memory map.

        Only the pages that are then copied are read from disk. What lies there in parts is a copy.
        """
        if (parts := self._parts.get(name)) is None:
            return self._tensor(self._key_of[name])
        shape = self._module.get_parameter(name).shape
        return torch.cat([self._tensor(key) for key in parts.keys]).view(shape)

    def beside(self, name: str) -> Tensor | None:
        """A weight that the module was built without, by its name in a whole model; None: in no file."""
        key = self._prefix + name
        return self._tensor(key) if key in self._file_of else None

    def _tensor(self, key: str) -> Tensor:
        return self._handle(self._file_of[key]).get_tensor(key)

    def _handle(self, file: str) -> safe_open:
        if file not in self._open:
            path = self._folder / file
            try:
                self._open[file] = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                rule, fix = why_unreadable(path, error), "download or convert the backbone again"
                raise UserError(Mistake(str(path), "file", rule, fix)) from None
        return self._open[file]

    def _index(self) -> dict[str, str]:
        """The file of each weight."""
        folder = self._folder
        names = {path.name for path in folder.iterdir() if path.is_file()}
        if wrong := weights_mistake(folder, names, shown=str(folder)):
            raise UserError(wrong)
        if INDEX in names and WEIGHTS not in names:
            return read_index(folder / INDEX)
        if INDEX in names and self._warn:
            logger.warning(
                "%s has %s and %s: the first one is read, as transformers does", folder, WEIGHTS, INDEX
            )
        return {key: WEIGHTS for key in self._handle(WEIGHTS).keys()}  # noqa: SIM118

    def _match(self, module: "PreTrainedModel") -> dict[str, str]:
        wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        prefixes = ("", f"{module.base_model_prefix}.", "model.", "transformer.")
        prefix = max(dict.fromkeys(prefixes), key=lambda p: sum(p + name in self._file_of for name in wanted))
        self._prefix = prefix
        keys = {name: self._key_in_file(prefix + name) for name in wanted}
        found = {name: key for name, key in keys.items() if key in self._file_of}
        found |= self._match_experts({name: wanted[name] for name in wanted if name not in found})
        embedding = next((n for n, m in module.named_modules() if m is module.get_input_embeddings()), None)
        if module.config.tie_word_embeddings and f"{embedding}.weight" not in found:
            tied = next((key for key in ("lm_head.weight", "embed_out.weight") if key in self._file_of), None)
            found.update({f"{embedding}.weight": tied} if tied else {})
        computed = {name for name, _ in module.named_buffers()}
        missing = [name for name in wanted if name not in found and name not in computed]
        if missing:
            self._require_plain_names(wanted)
            rule = f"lacks {len(missing)} of {len(wanted)} weights, e.g. {missing[0]}"
            raise self._misfit("backbone.path", self._folder, rule)
        for name, key in found.items():
            if name not in self._parts:
                self._require_fitting(key, wanted[name], computed=name in computed)
        in_parts = {key: parts.shape for parts in self._parts.values() for key in parts.keys}
        for key, shape in in_parts.items():
            self._require_fitting(key, shape, computed=False)
        used = {*found.values(), *in_parts}
        self._check_extra([key for key in self._file_of if key not in used], prefix, wanted)
        return found

    def _match_experts(self, missing: dict[str, tuple[int, ...]]) -> dict[str, str]:
        """Finds the parts of experts' weights by names and shapes in the module; the first part of each."""
        for name, shape in missing.items():
            parts = expert_parts(self._module.config.model_type, self._prefix + name, shape)
            if parts is not None and all(key in self._file_of for key in parts.keys):
                self._parts[name] = parts
        return {name: parts.keys[0] for name, parts in self._parts.items()}

    def _require_plain_names(self, wanted: Iterable[str]) -> None:
        """Checks, where weights are missing, that they are not quantised and have no other names."""
        if quantised := [key for key in self._file_of if key.endswith(QUANTISED_KEYS)]:
            rule = f"holds weights that are quantised already (e.g. {quantised[0]})"
            raise UserError(Mistake("backbone.path", self._folder, rule, UNQUANTISED))
        ending = f".{self._prefix}{next(iter(wanted))}"
        if wrapped := [key for key in self._file_of if key.endswith(ending)]:
            rule = (
                f"has {wrapped[0].removesuffix(ending)!r} before the names of its weights, e.g. {wrapped[0]}"
            )
            fix = "save the model itself, not the wrapper around it, by save_pretrained"
            raise UserError(Mistake("backbone.path", self._folder, rule, fix))

    def _key_in_file(self, key: str) -> str:
        """BERT's first checkpoints call the weight and bias of a layer norm gamma and beta; see Mixtral."""
        old = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old = old.replace(*MIXTRAL_ROUTER)
        return old if old in self._file_of and key not in self._file_of else key

    def _require_fitting(self, key: str, wanted: tuple[int, ...], *, computed: bool) -> None:
        try:
            stored = self._handle(self._file_of[key]).get_slice(key)
        except SafetensorError:
            rule = f"is not in {self._file_of[key]}, where the index says it is"
            raise UserError(Mistake(str(self._folder), key, rule, "download the backbone again")) from None
        shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
        if shape != wanted and dtype in QUANTISED_DTYPES:
            rule = f"holds weights that are quantised already ({key}: {dtype})"
            raise UserError(Mistake("backbone.path", self._folder, rule, UNQUANTISED))
        if shape != wanted:
            raise self._misfit(key, shape, f"config.json says {wanted}")
        if dtype not in SAFETENSORS_DTYPES and not computed:
            fix = "give the backbone before it was quantised, and set backbone.quantization instead"
            raise UserError(Mistake(key, dtype, f"is none of {', '.join(SAFETENSORS_DTYPES)}", fix))

    def _check_extra(self, keys: list[str], prefix: str, wanted: Iterable[str]) -> None:
        """Checks weights without a place: an error inside the layers, elsewhere logged as unread."""
        stacks = tuple(
            {re.sub(r"(?<=\.)\d+\..*", "", prefix + name) for name in wanted if re.search(r"\.\d+\.", name)}
        )
        extra = [key for key in keys if not re.match(HEAD_KEYS, key.removeprefix(prefix))]
        layers = [key for key in extra if key.startswith(stacks)]
        if layers:
            rule = f"has no place in the layers that config.json describes ({len(layers)} such weights)"
            raise self._misfit(str(self._folder), layers[0], rule)
        if extra and self._warn:
            logger.warning("%s: %d weights are not read, e.g. %s", self._folder, len(extra), extra[0])

    def _misfit(self, where: str, value: object, rule: str) -> UserError:
        """The error of weights that do not fit the module; code of the model's own may be why."""
        fix = "give the weights that belong to the config.json beside them"
        code = own_code({"auto_map": getattr(self._module.config, "auto_map", None)})
        if code and runs_own_code(self._module):
            rule = f"{rule}, in the model's own code ({code})"
        elif code:
            name = type(self._module).__name__
            rule = (
                f"{rule}: the model has its own code ({code}), instead of which transformers' {name} was used"
            )
            fix = "set backbone.trust_remote_code=true to run that code"
        return UserError(Mistake(where, value, rule, fix))


def require_weights(spec: "BackboneSpec", fingerprint: str, *, cache: Path | None = None) -> None:
    """Checks the headers of a backbone's weight files against its shapes, and reads no weight.

    Args:
        spec: the backbone.
        fingerprint: `weights_fingerprint` of its files.
        cache: folder in which a success is kept, so that no module need be built for the next check.

    Raises:
        UserError: where files or weights are missing, damaged, or of another shape.
    """
    kept = None
    if cache is not None and not spec.trust_remote_code:
        digest = hashlib.sha256(Path(__file__).read_bytes() + metadata.version("transformers").encode())
        digest.update(fingerprint.encode())
        if (index := spec.folder / INDEX).is_file():
            digest.update(index.read_bytes())
        kept = cache / "checked_weights" / digest.hexdigest()[:32]
        if kept.is_file():
            return
    WeightFiles(spec.folder, spec.skeleton, warn=False)
    if kept is not None:
        atomic_write(kept, lambda aside: aside.write_text("fits\n"))


def replace_parameters(module: nn.Module, make: Callable[[str, nn.Parameter], nn.Parameter]) -> None:
    """Replaces every parameter by `make(name, parameter)`, a tied one by the same in all of its places."""
    made: dict[int, nn.Parameter] = {}
    for prefix, inner in module.named_modules():
        for key, old in list(inner._parameters.items()):
            if old is None:
                continue
            if id(old) not in made:
                made[id(old)] = make(f"{prefix}.{key}" if prefix else key, old)
            inner._parameters[key] = made[id(old)]


def fill_whole(module: nn.Module, files: WeightFiles, *, dtype: torch.dtype, device: torch.device) -> None:
    """Loads a whole copy of every weight onto this process's device."""

    def room(weight: Tensor) -> int:
        return -(-weight.numel() // ALIGN_ENTRIES) * ALIGN_ENTRIES

    block = Arena(map(room, module.parameters()), dtype, device)

    def whole(name: str, old: nn.Parameter) -> nn.Parameter:
        value = block.take(room(old))[: old.numel()]
        files.read_into(value, name)
        return nn.Parameter(value.view(old.shape), requires_grad=False)

    replace_parameters(module, whole)


def weights_fingerprint(folder: Path) -> str:
    """64 hex digits that identify a backbone's files, of their names, sizes, headers and ends.

    Raises:
        UserError: where something with such a name is not a file.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        if not os.path.isfile(path):
            raise UserError(Mistake(str(path), "weights", "is not a file", "download the backbone again"))
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        digest.update(read_ends(path, 1 << 16))
    return digest.hexdigest()
