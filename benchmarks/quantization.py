"""What a quantised backbone takes: memory held, memory while loading, and time.

A Llama shape of random bf16 weights is loaded in a process of its own for each way. `plan` is the plan's
number for the backbone, `held` what its tensors take, `peak of loading` the most private memory beyond the
start's (pages of the memory-mapped file are not private). A pass is forward and backward of 1,024 tokens
through the frozen maps, without adapters.

Run: python -m benchmarks.quantization [--json FILE] [--quick]
"""

import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import LlamaConfig, LlamaModel

from benchmarks._common import parser, show
from benchmarks.rank_sampling import LLAMA_50M
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.models.backbone.backbone import DTYPES, BackboneOptions, load_backbone
from lingo_ds.models.backbone.quantized_linear import FORMS, quantized_facts
from lingo_ds.models.backbone.spec import read_spec

LLAMA_500M = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
MIB = 1024**2
BATCH, LENGTH = 8, 128


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--dtype", choices=list(DTYPES), default="bf16", help="compute type (bf16)")
    args = arguments.parse_args()
    name, shape = ("llama-50m", LLAMA_50M) if args.quick else ("llama-500m", LLAMA_500M)
    with tempfile.TemporaryDirectory() as folder:
        write_backbone(Path(folder), shape)
        rows = []
        for quantization in ("none", "int8", "nf4"):
            measured = in_own_process(folder, quantization, args.dtype, 2 if args.quick else 5)
            rows.append({"backbone": name, "dtype": args.dtype, "quantization": quantization, **measured})
    for row in rows:
        row["ratio"] = rows[0]["ms a pass"] / row["ms a pass"]
    show({"quantised backbones": rows}, json_path=args.json)


def write_backbone(folder: Path, shape: dict[str, int]) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaModel(LlamaConfig(**shape)).save_pretrained(folder)
    torch.set_default_dtype(torch.float32)


def in_own_process(*work: Any) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return json.loads(pool.apply(measure, work))


def measure(folder: str, quantization: str, dtype: str, repeats: int) -> str:
    torch.set_num_threads(1)
    spec = read_spec(Path(folder))
    width = DTYPES[dtype].itemsize
    facts = quantized_facts(spec.linear_maps, quantization)
    rest = spec.parameters - facts.get("quantized_parameters", 0)
    if quantization != "none":
        FORMS[quantization](torch.ones(64, 64), None)  # imports: not the backbone's memory and time
    start = time.perf_counter()
    with Peak() as peak:
        env = DistEnv(0, 0, 1, 1, torch.device("cpu"))
        options = BackboneOptions(quantization=quantization)
        backbone = load_backbone(spec, options, dtype=DTYPES[dtype], env=env)
    seconds = time.perf_counter() - start
    ids = torch.randint(spec.embedding_shape[0], (BATCH, LENGTH))
    backbone.module.get_input_embeddings().register_forward_hook(lambda *args: args[2].requires_grad_())
    passes = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        backbone.hidden_states(ids, None).float().square().mean().backward()
        passes.append(time.perf_counter() - begin)
    return json.dumps(
        {
            "parameters": spec.parameters,
            "plan MiB": (rest * width + facts.get("quantized_bytes", 0)) / MIB,
            "held MiB": backbone.held_bytes() / MIB,
            "peak of loading MiB": peak.bytes / MIB,
            "seconds to load": seconds,
            "ms a pass": 1000 * statistics.median(passes[1:]),
        }
    )


class Peak:
    """The most private memory of this process inside, beyond the start's; looked at every 2 ms."""

    def __enter__(self) -> "Peak":
        self._over, self._start = threading.Event(), private_bytes()
        self.bytes = 0
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.002):
            self.bytes = max(self.bytes, private_bytes() - self._start)


def private_bytes() -> int:
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


if __name__ == "__main__":
    main()
