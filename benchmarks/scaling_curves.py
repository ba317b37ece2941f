"""Predicted speed on 1 to 64 hosts of 8 GPUs: 7B, 13B and 70B, as planned here and under plain ZeRO-3.

Predictions of `lingo_ds.planning`, nothing is run; docs/scaling.md says what of them was held against
reality. The batch grows with the processes: each computes as many tokens in a step, whatever the number of
hosts. Efficiency is tokens/s per GPU over that of the same job on one host.

`python -m benchmarks.scaling_curves --json FILE --picture FILE`.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks._common import parser, show
from lingo_ds.config.run_config import RunConfig
from lingo_ds.distributed.process_group import detect
from lingo_ds.planning.cost.elsewhere import Cluster, Lengths, Shapes, make_scenario, read_shapes
from lingo_ds.planning.cost.estimate import Estimate, estimate_step
from lingo_ds.planning.cost.machine import gpu_machine
from lingo_ds.planning.traffic import by_link
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import UserError

SIZES = {
    "7B": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "13B": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}
"""Llama 2's shapes."""

PER_HOST = 8
HOSTS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = 128
"""Tokens of an example."""

WAYS = {"planned": {}, "plain ZeRO-3": {"stage": 3, "hpz": "off"}}
"""Settings of `zero`; plain ZeRO-3 spreads one copy over all processes."""


def write_config(folder: Path, size: str) -> Path:
    """A folder with nothing but config.json."""
    made = folder / size
    made.mkdir()
    config = SIZES[size] | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (made / "config.json").write_text(json.dumps(config))
    return made


class Scaling:
    """One model on any number of hosts."""

    def __init__(self, backbone: Path, *, gpu: str, per_process: int):
        self._gpu, self._per_process, self._backbone = gpu, per_process, backbone
        self._shapes: Shapes | None = None

    def on(self, hosts: int, link: str, zero: dict[str, Any]) -> Estimate | None:
        """What a step there takes; None where it does not fit."""
        world = hosts * PER_HOST
        config = RunConfig(
            name="scaling",
            backbone={"path": str(self._backbone)},
            data={"path": "absent"},
            train={"global_batch_size": world * math.ceil(self._per_process / TOKENS), "max_steps": 1000},
            zero=zero | ({"shard_group": world} if zero else {}),
        )
        cluster = Cluster(hosts=hosts, per_host=PER_HOST, machine=gpu_machine(self._gpu, link))
        self._shapes = self._shapes or read_shapes(config, detect(), Lengths(rows=10**7, tokens=TOKENS))
        try:
            return estimate_step(make_scenario(config, self._shapes, cluster))
        except UserError:
            return None


def curve(size: str, scaling: Scaling, link: str, hosts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each way and number of hosts."""
    for way, zero in WAYS.items():
        first = None
        for count in hosts:
            seen = scaling.on(count, link, zero)
            if seen is None:
                continue
            rate = seen.tokens_per_second / count / PER_HOST
            first = first or rate
            links = by_link(one.collective for one in seen.sent)
            yield {
                "model": size,
                "way": way,
                "hosts": count,
                "tokens/s per GPU": rate,
                "efficiency": rate / first,
                "step s": seen.seconds,
                "exposed s": seen.exposed,
                "GB inside": links["inside"] / 1e9,
                "GB between": links["between"] / 1e9,
                "GiB per GPU": seen.peak_bytes / 2**30,
            }


def least_tokens(backbone: Path, gpu: str, link: str, zero: dict[str, Any], *, hosts: int) -> int | None:
    """Tokens of a process and step, by powers of two, from which on the efficiency is 95 % or more."""
    for tokens in (2**k for k in range(9, 21)):
        scaling = Scaling(backbone, gpu=gpu, per_process=tokens)
        one, many = scaling.on(1, link, zero), scaling.on(hosts, link, zero)
        if one and many and many.tokens_per_second / one.tokens_per_second >= 0.95 * hosts:
            return tokens
    return None


def draw(rows: Sequence[dict[str, Any]], title: str, file: Path) -> None:
    """Efficiency over hosts, a panel for each model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(4 * len(models), 3.6), layout="constrained")
    for axes, model in zip(
        figure.subplots(1, len(models), sharey=True, squeeze=False)[0], models, strict=True
    ):
        for way, mark in zip(WAYS, ("o-", "s--"), strict=True):
            mine = [row for row in rows if (row["model"], row["way"]) == (model, way)]
            axes.plot([row["hosts"] for row in mine], [row["efficiency"] for row in mine], mark, label=way)
        axes.axhline(0.95, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_xticks(HOSTS, [str(count) for count in HOSTS])
        axes.set(title=model, xlabel=f"hosts of {PER_HOST} GPUs", ylim=(0, 1.05))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("efficiency (predicted)")
    figure.axes[0].legend(loc="lower left")
    figure.suptitle(title)
    figure.savefig(file, dpi=110)


def main() -> None:
    given = parser(__doc__)
    given.add_argument("--gpu", default="h200")
    given.add_argument("--link", default="400Gb", help="network of one host")
    given.add_argument("--tokens", type=int, default=8192, help="of a process and step")
    given.add_argument("--picture", type=Path, help="PNG to draw")
    args = given.parse_args()
    logs.quieten_libraries()
    sizes, hosts = (["7B"], (1, 64)) if args.quick else (list(SIZES), HOSTS)
    links = [args.link] if args.quick else ["100Gb", "400Gb", "8x400Gb"]
    rows, least = [], []
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        for size in sizes:
            backbone = write_config(Path(name), size)
            rows += curve(size, Scaling(backbone, gpu=args.gpu, per_process=args.tokens), args.link, hosts)
            least += [
                {"model": size, "link of a host": link}
                | {
                    way: least_tokens(backbone, args.gpu, link, zero, hosts=max(hosts))
                    for way, zero in WAYS.items()
                }
                for link in links
            ]
    title = f"predicted: {args.gpu}, {args.link} a host, {args.tokens:,} tokens a process and step"
    if args.picture:
        draw(rows, title, args.picture)
    show(
        {title: rows, f"least tokens a process and step for 95 % on {max(hosts)} hosts": least},
        json_path=args.json,
    )


if __name__ == "__main__":
    main()
