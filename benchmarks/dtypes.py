"""From which width on bf16 is faster than fp32 on this CPU: forward and backward of two decoder layers.

Two layers of random weights, an adapter of rank 8 on every map, packs of equal examples; both dtypes take
turns, and the seconds are the process's own on one thread, which other work on the machine hardly changes.

`python -m benchmarks.dtypes --widths 64 896 --json FILE`
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks._common import parser, show
from benchmarks.make_backbone import make
from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.synthetic_promoters import write_promoters
from lingo_ds.distributed import process_group
from lingo_ds.models.backbone.builtin import token_ids
from lingo_ds.training.build_model import build_model
from lingo_ds.training.setup import prepare

FFN = {64: 172, 128: 352, 256: 704, 384: 1024, 512: 1408, 640: 2048, 896: 4864}
"""Inner width of the feed-forward part by width, of models of that size."""

BATCH = 16


def main() -> None:
    given = parser(__doc__)
    given.add_argument("--widths", nargs="+", type=int, default=list(FFN), choices=list(FFN))
    given.add_argument("--repeats", type=int, default=10)
    args = given.parse_args()
    if args.quick:
        args.widths, args.repeats = args.widths[:1], 3
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [_row(width, Path(folder), args.repeats) for width in args.widths]
    show({"tokens per CPU second by dtype": rows}, json_path=args.json)


def _row(width: int, folder: Path, repeats: int) -> dict[str, Any]:
    steps = {}
    tokens = 0
    for dtype in ("fp32", "bf16"):
        steps[dtype], tokens = _step(width, dtype, folder)
    seconds: dict[str, list[float]] = {dtype: [] for dtype in steps}
    for turn in range(repeats + 1):
        for dtype, step in steps.items():
            start = time.process_time()
            step()
            if turn:
                seconds[dtype].append(time.process_time() - start)
    ours, rival = (tokens / statistics.median(seconds[dtype]) for dtype in ("bf16", "fp32"))
    return {"hidden": width, "feed-forward": FFN[width], "ours": ours, "rival": rival, "ratio": ours / rival}


def _step(width: int, dtype: str, folder: Path) -> tuple[Callable[[], None], int]:
    """A forward and backward pass of one batch, and its tokens."""
    backbone, data = folder / f"backbone-{width}", folder / "data"
    if not backbone.exists():
        config = AutoConfig.for_model(
            "qwen2",
            **token_ids(),
            hidden_size=width,
            intermediate_size=FFN[width],
            num_hidden_layers=2,
            num_attention_heads=max(1, width // 64),
            num_key_value_heads=max(1, width // 64),
            tie_word_embeddings=True,
        )
        config.architectures = None
        make(backbone, config, dtype=torch.float32, shard_bytes=1 << 30, seed=0)
    if not data.exists():
        write_promoters(data)
    run = RunConfig.model_validate(
        {
            "name": "dtypes",
            "output_dir": str(folder / "run"),
            "backbone": {"path": str(backbone), "dtype": dtype},
            "data": {"path": str(data), "cache_dir": str(folder / "cache")},
            "train": {"global_batch_size": BATCH, "max_steps": 100},
            "zero": {"stage": 0},
        }
    )
    setup = prepare(run, process_group.detect())
    from lingo_ds.training.session import Session

    session = Session(setup, build_model(setup))
    batches = session.batches.at(1)

    def step() -> None:
        for batch in batches:
            batch.logits(session.model).square().sum().backward()
            session.model.bank.collect_grad()

    return step, sum(batch.computed_tokens for batch in batches)


if __name__ == "__main__":
    main()
