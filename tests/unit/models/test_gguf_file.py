"""GGUF files as backbones: the model that llama.cpp's own package reads from them, under every verb."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lingo_ds.commands.cli import main
from lingo_ds.models.backbone import gguf_file
from lingo_ds.models.backbone.hub import backbone_folder
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.utils.errors import UserError
from tests.unit.models.random_models import load
from tests.unit.running import command

HIDDEN, INNER, HEADS, LAYERS = 64, 96, 4, 2
LETTERS = ["<pad>", "</s>", "\u0120", "\u010a", "AC", *map(chr, range(33, 127))]
"""Special tokens, blank and end of line as byte-level tokenizers write them, a merge, and ASCII."""
DNA = ["ACGTACGTACGTACGT", "TATAAA"]
"""What the model card's example classifies."""


def shapes() -> dict[str, tuple[int, ...]]:
    """Weights of a Qwen 2 by llama.cpp's names, (d_out, d_in)."""
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (len(LETTERS), HIDDEN),
        "output_norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        block = {f"attn_{one}.weight": (HIDDEN, HIDDEN) for one in ("q", "k", "v", "output")}
        block |= {f"attn_{one}.bias": (HIDDEN,) for one in ("q", "k", "v")}
        block |= {"ffn_gate.weight": (INNER, HIDDEN), "ffn_up.weight": (INNER, HIDDEN)}
        block |= {
            "ffn_down.weight": (HIDDEN, INNER),
            "attn_norm.weight": (HIDDEN,),
            "ffn_norm.weight": (HIDDEN,),
        }
        found |= {f"blk.{layer}.{name}": shape for name, shape in block.items()}
    return found


def write_gguf(path: Path, *, kind: str = "Q8_0") -> dict[str, np.ndarray]:
    """A file of random weights, the matrices of one kind; returns what llama.cpp's package reads from it."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    writer, draw, values = gguf.GGUFWriter(path, "qwen2"), np.random.default_rng(0), {}
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(LETTERS)
    writer.add_token_merges(["A C"])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    quantised = gguf.GGMLQuantizationType[kind]
    for name, shape in shapes().items():
        value = draw.normal(1.0 if "norm" in name else 0.0, 0.2, shape).astype(np.float32)
        if len(shape) == 2:
            packed = gguf.quants.quantize(value, quantised)
            value = gguf.quants.dequantize(packed, quantised)
            writer.add_tensor(name, packed, raw_dtype=quantised)
        else:
            writer.add_tensor(name, value)
        values[name] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


OURS = {
    "token_embd.weight": "embed_tokens.weight",
    "blk.1.attn_q.weight": "layers.1.self_attn.q_proj.weight",
    "blk.0.attn_k.bias": "layers.0.self_attn.k_proj.bias",
    "blk.1.ffn_down.weight": "layers.1.mlp.down_proj.weight",
    "blk.0.ffn_norm.weight": "layers.0.post_attention_layernorm.weight",
    "output_norm.weight": "norm.weight",
}


@pytest.mark.parametrize(
    ("kind", "dtype"), [("Q8_0", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)]
)
def test_weights_are_those_of_the_file(tmp_path, kind, dtype):
    values = write_gguf(tmp_path / "m.gguf", kind=kind)
    folder = backbone_folder(str(tmp_path / "m.gguf"), revision=None, cache=tmp_path / "cache")
    weights = dict(load(folder).module.named_parameters())
    for theirs, ours in OURS.items():
        expected = torch.from_numpy(values[theirs])
        assert torch.equal(weights[ours], expected.to(dtype).float()), theirs
    assert not list(folder.glob("*.gguf")) and "lm_head" not in str(read_spec(folder).skeleton)


def test_a_file_is_converted_once_and_known_again_by_its_content(tmp_path):
    write_gguf(tmp_path / "m.gguf")
    cache = tmp_path / "cache"
    folder = gguf_file.converted(tmp_path / "m.gguf", cache)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "m.gguf").rename(tmp_path / "other.gguf")
    assert gguf_file.converted(tmp_path / "other.gguf", cache) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    write_gguf(tmp_path / "m.gguf", kind="F16")
    assert gguf_file.converted(tmp_path / "m.gguf", cache) != folder


def test_a_run_trains_merges_and_predicts(shared, tmp_path, monkeypatch):
    import lingo_ds

    monkeypatch.setenv("LINGO_DS_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "m.gguf")
    recipe = tmp_path / "run.yaml"
    recipe.write_text(
        f"name: run\nbackbone: {{path: {tmp_path / 'm.gguf'}}}\n"
        f"data: {{path: {shared / 'field/good'}, cache_dir: {tmp_path / 'cache'}}}\n"
        "adapter: {rank: 2}\nrank_sampling: {target_rank: 1, interval: 1}\n"
        "train: {max_steps: 4, global_batch_size: 8, learning_rate: 1.0e-2}\n"
    )
    status, shown = command("train", recipe, tmp_path / "out")
    assert status == 0, shown
    found = lingo_ds.load(tmp_path / "out/adapter").predict(DNA)
    assert found.labels.shape == (2,)
    merged = tmp_path / "merged"
    assert (
        main(
            ["export", "--adapter", str(tmp_path / "out/adapter"), "--to", "merged", "--output", str(merged)]
        )
        == 0
    )
    assert (merged / "model.safetensors").is_file()


def test_what_cannot_be_read_is_named_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\3\0\0\0 and nothing else")
    part = tmp_path / "m-00001-of-00002.gguf"
    part.write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(UserError) as error:
        gguf_file.converted(part, tmp_path / "cache")
    assert "llama-gguf-split --merge" in str(error.value)
    if gguf_file.importlib.util.find_spec("gguf"):
        with pytest.raises(UserError, match="cannot be read by transformers"):
            gguf_file.converted(tmp_path / "broken.gguf", tmp_path / "cache")
    monkeypatch.setattr(gguf_file, "NEEDED", ("gguf", "no_such_package"))
    with pytest.raises(UserError, match=r"no_such_package, not installed here: pip install lingo_ds\[gguf\]"):
        gguf_file.converted(tmp_path / "broken.gguf", tmp_path / "cache")
    assert not any((tmp_path / "cache" / "gguf").glob("*"))
