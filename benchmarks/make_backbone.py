"""Makes a Hugging Face folder of any model's shape with random weights, for measures at full size.

Weights are drawn and written a piece at a time, so that a model of any size is made in little memory. The
same shape, dtype and seed give the same weights, whatever the size of the files. The tokenizer reads one
token a character (`builtin.character_tokenizer`), so that a recipe can name the folder.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from benchmarks import _common
from lingo_ds.models.backbone.backbone import DTYPES
from lingo_ds.models.backbone.builtin import character_tokenizer, token_ids
from lingo_ds.utils.files import atomic_write


def _gated(
    family: str,
    vocabulary: int,
    hidden: int,
    ffn: int,
    layers: int,
    heads: int,
    kv_heads: int,
    context: int,
    **more: Any,
) -> dict[str, Any]:
    return {
        "model_type": family,
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        **more,
    }


def _opt(hidden: int, ffn: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": hidden,
        "ffn_dim": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        **more,
    }


SHAPES = {
    "tiny": _gated("llama", 32000, 64, 176, 2, 4, 2, 1024),
    "llama-500m": _gated("llama", 32000, 1536, 4096, 14, 12, 12, 4096),
    "llama-1.3b": _gated("llama", 32000, 2048, 5504, 24, 16, 16, 2048),
    "llama-2-7b": _gated("llama", 32000, 4096, 11008, 32, 32, 32, 4096, rms_norm_eps=1e-5),
    "mistral-7b": _gated("mistral", 32000, 4096, 14336, 32, 32, 8, 32768, sliding_window=None),
    "qwen-2.5-0.5b": _gated("qwen2", 151936, 896, 4864, 24, 14, 2, 32768, tie_word_embeddings=True),
    "qwen-2.5-7b": _gated("qwen2", 152064, 3584, 18944, 28, 28, 4, 32768),
    "opt-350m": _opt(1024, 4096, 24, 16, word_embed_proj_dim=512, do_layer_norm_before=False),
    "opt-6.7b": _opt(4096, 16384, 32, 32),
}
"""`config.json` of models by name; what is left out is as transformers has it for the family."""

PIECE = 1 << 24
"""Entries that are drawn at a time."""

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""Of dtypes in a safetensors header."""


class Weight(NamedTuple):
    """One weight to be: its name, shape, and the normal distribution that its entries are drawn from."""

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float

    @property
    def entries(self) -> int:
        return torch.Size(self.shape).numel()


def make(folder: Path, config: PreTrainedConfig, *, dtype: torch.dtype, shard_bytes: int, seed: int) -> int:
    """Writes `config.json`, safetensors files with their index, and a tokenizer; replaces what is there.

    Args:
        folder: appears whole or not at all.
        config: of a causal language model.
        dtype: of the weights.
        shard_bytes: most in a file; a single weight may be larger.
        seed: of the weights.

    Returns:
        Entries of all weights.
    """
    shards = list(_shards(weights_of(config), shard_bytes // dtype.itemsize))
    config.dtype = dtype

    def write(aside: Path) -> None:
        aside.mkdir()
        config.save_pretrained(aside)
        character_tokenizer().save_pretrained(aside)
        file_of = {}
        for number, shard in enumerate(shards, start=1):
            name = "model.safetensors"
            if len(shards) > 1:
                name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            with (aside / name).open("wb") as file:
                _write_shard(file, shard, dtype, seed)
            file_of.update(dict.fromkeys((weight.name for weight in shard), name))
        if len(shards) > 1:
            size = sum(weight.entries for shard in shards for weight in shard) * dtype.itemsize
            index = {"metadata": {"total_size": size}, "weight_map": file_of}
            (aside / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))

    atomic_write(folder, write)
    return sum(weight.entries for shard in shards for weight in shard)


def config_of(shape: str) -> PreTrainedConfig:
    """Of a name in `SHAPES`, with the tokenizer's ids; or of a `config.json`, as it is."""
    if shape in SHAPES:
        values = {key: value for key, value in token_ids().items() if key != "vocab_size"} | SHAPES[shape]
    else:
        values = json.loads(Path(shape).read_text())
    config = AutoConfig.for_model(**values)
    config.architectures = None
    return config


def weights_of(config: PreTrainedConfig) -> list[Weight]:
    """The weights that a checkpoint of the model holds: those that are tied once."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    std = getattr(config, "initializer_range", None) or getattr(config, "init_std", 0.02)
    made: dict[int, Weight] = {}
    for name, value in model.named_parameters():  # tied ones come once
        is_norm = value.ndim == 1 and name.endswith("weight")
        made[id(value)] = Weight(name, tuple(value.shape), float(is_norm), 0.0 if value.ndim == 1 else std)
    return list(made.values())


def _shards(weights: list[Weight], most: int) -> Iterator[list[Weight]]:
    """Weights in order, in files of at most so many entries."""
    shard: list[Weight] = []
    for weight in weights:
        if shard and sum(one.entries for one in shard) + weight.entries > most:
            yield shard
            shard = []
        shard.append(weight)
    yield shard


def _write_shard(file: BinaryIO, weights: list[Weight], dtype: torch.dtype, seed: int) -> None:
    """A safetensors file: length of the header, the header, then all values, without ever holding them."""
    header: dict[str, Mapping[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in weights:
        start, end = end, end + weight.entries * dtype.itemsize
        place = [start, end]
        header[weight.name] = {"dtype": NAMES[dtype], "shape": weight.shape, "data_offsets": place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for weight in weights:
        for piece in _values(weight, dtype, seed):
            file.write(piece.view(torch.uint8).numpy())


def _values(weight: Weight, dtype: torch.dtype, seed: int) -> Iterator[Tensor]:
    """The weight's entries in order, (up to PIECE,)."""
    own_seed = int.from_bytes(hashlib.sha256(f"{seed} {weight.name}".encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(own_seed)
    for start in range(0, weight.entries, PIECE):
        piece = torch.empty(min(PIECE, weight.entries - start), dtype=dtype)
        yield piece.normal_(weight.mean, weight.std, generator=generator)


def _arguments() -> argparse.Namespace:
    parser = _common.parser(__doc__)
    parser.add_argument(
        "--shape", help=f"{', '.join(SHAPES)}, or a config.json (default: llama-2-7b; with --quick: tiny)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: written, timed and deleted")
    parser.add_argument("--dtype", choices=[*DTYPES], default="bf16")
    parser.add_argument("--shard-gb", type=float, default=5.0, metavar="GB", help="most in a file (5)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.shape = args.shape or ("tiny" if args.quick else "llama-2-7b")
    if args.shape not in SHAPES and not Path(args.shape).is_file():
        parser.error(f"--shape: {args.shape}: neither a file nor one of {', '.join(SHAPES)}")
    return args


def main() -> int:
    args = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        folder = args.output or Path(temporary) / "backbone"
        parameters = make(
            folder,
            config_of(args.shape),
            dtype=DTYPES[args.dtype],
            shard_bytes=int(args.shard_gb * 1e9),
            seed=args.seed,
        )
        row = {
            "shape": args.shape,
            "parameters": parameters,
            "dtype": args.dtype,
            "files": len(list(folder.glob("*.safetensors"))),
            "GB": sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9,
            "seconds": time.perf_counter() - start,
        }
    _common.show({"backbones with random weights": [row]}, json_path=args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
