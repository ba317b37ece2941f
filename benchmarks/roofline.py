"""Where the time of a layer goes on a GPU: every operator's bytes and FLOP beside the roofline of the card.

Three layers of a model's shape with random weights train one pack. Without a card the operators are counted
on a pretend one (`tests/pretend`, needs g++), on tensors that hold no values, and `--gpu` says whose data
sheet counts. On a card the same is counted, and the layers' times are measured beside it.

`roofline ms`: the larger of bytes over the memory's rate and FLOP over the peak, both of the data sheet, and
for each operator at least the time of the smallest kernel: no layer can be faster with these operators.
`assumed ms`: the same with the shares of these rates that the plan counts with (`planning/cost/machine.py`).
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._common import parser, show
from benchmarks._one_step import Work, count, count_without_card, measure
from benchmarks._operators import KINDS, Operator
from benchmarks.make_backbone import SHAPES, config_of, make
from lingo_ds.monitor.throughput import device_peak_flops
from lingo_ds.planning.cost.machine import ACHIEVED, GPUS
from lingo_ds.utils.errors import UserError
from tests.pretend.cards import CannotBuild

LAYERS = 3
"""The one in the middle is like all but the last, which computes one token of each example."""

SMALLEST_KERNEL = 2.5e-6
"""Seconds that a kernel takes at least on the card. Assumed, not measured."""


class Roofline(NamedTuple):
    """Rates of a card: bytes/s of its memory, dense bf16 FLOP/s."""

    memory: float
    products: float

    def seconds(self, operator: Operator) -> float:
        """The least time of an operator."""
        return max(operator.bytes / self.memory, operator.flops / self.products, SMALLEST_KERNEL)


def rooflines(gpu: str) -> tuple[Roofline, Roofline]:
    """Of the data sheet, and with the shares that the plan counts with."""
    peak = device_peak_flops(GPUS[gpu].device)
    assert peak is not None
    sheet = Roofline(GPUS[gpu].hbm, peak)
    return sheet, Roofline(ACHIEVED["memory"] * sheet.memory, ACHIEVED["products"] * sheet.products)


def sections_of(layers: int) -> dict[str, str]:
    """The sections that are shown, and how."""
    return {
        f"{way} {k}": f"{what} layer, {way}"
        for k, what in ((layers - 2, "a"), (layers - 1, "the last"))
        for way in ("forward", "backward")
    }


def table(operators: Sequence[Operator], gpu: str, measured: dict[str, float]) -> list[dict[str, Any]]:
    """One row for each section and kind of operator, and one for the whole section."""
    sheet, assumed = rooflines(gpu)
    rows = []
    for section, what in sections_of(LAYERS).items():
        mine = [one for one in operators if one.section == section]
        whole = sum(map(assumed.seconds, mine))
        for kind in ("all", *KINDS):
            chosen = [one for one in mine if kind in ("all", one.kind)]
            if not chosen:
                continue
            seconds = measured.get(section) if kind == "all" else None
            least, likely = (sum(map(one.seconds, chosen)) for one in (sheet, assumed))
            rows.append(
                {
                    "what": what,
                    "operators": kind,
                    "number": len(chosen),
                    "GB": sum(one.bytes for one in chosen) / 1e9,
                    "TFLOP": sum(one.flops for one in chosen) / 1e12,
                    "roofline ms": least * 1e3,
                    "assumed ms": likely * 1e3,
                    "share": likely / whole,
                    "measured ms": seconds and seconds * 1e3,
                    "of roofline": seconds and least / seconds,
                }
            )
    return rows


def detail(operators: Sequence[Operator], gpu: str, *, most: int = 12) -> list[dict[str, Any]]:
    """The operators of a layer that take longest, forward and backward together."""
    _, assumed = rooflines(gpu)
    groups: dict[tuple[str, str], list[Operator]] = {}
    for one in operators:
        if re.fullmatch(rf"(forward|backward) {LAYERS - 2}", one.section):
            groups.setdefault((one.kind, one.name), []).append(one)
    rows = [
        {
            "operators": kind,
            "name": name,
            "number": len(group),
            "GB": sum(one.bytes for one in group) / 1e9,
            "assumed ms": sum(map(assumed.seconds, group)) * 1e3,
        }
        for (kind, name), group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["assumed ms"])[:most]


def main() -> int:
    args = _arguments()
    here = torch.cuda.is_available()
    tables = {}
    with tempfile.TemporaryDirectory(prefix="roofline-") as name:
        for shape in args.shapes:
            config = config_of(shape)
            config.num_hidden_layers = LAYERS
            folder = Path(name) / shape
            make(folder, config, dtype=torch.bfloat16, shard_bytes=5 * 10**9, seed=0)
            own = (args.tokens - args.prefix) // args.examples
            work = Work(folder, args.prefix, (own,) * args.examples)
            measured = measure(work, repeats=args.repeats, fused=args.liger) if here else {}
            operators = count(work) if here else count_without_card(work)
            pack = f"{args.prefix + own * args.examples:,} tokens, {args.examples} examples"
            title = f"{shape}, {pack}, {GPUS[args.gpu].device}"
            tables[title] = table(operators, args.gpu, measured)
            tables[f"{title}: a layer's operators"] = detail(operators, args.gpu)
    show(tables, json_path=args.json)
    return 0


def _arguments() -> argparse.Namespace:
    given = parser(__doc__)
    given.add_argument("--shapes", nargs="+", choices=SHAPES, default=None, help="default: llama-2-7b")
    given.add_argument("--tokens", type=int, default=8192, help="of the pack")
    given.add_argument("--prefix", type=int, default=32, help="tokens of the shared prefix")
    given.add_argument("--examples", type=int, default=100)
    given.add_argument("--gpu", choices=GPUS, help="whose data sheet counts (default: this card's, or h200)")
    given.add_argument("--liger", action="store_true", help="measure with liger-kernel's norms and gates")
    given.add_argument("--repeats", type=int, default=10, help="measured steps")
    args = given.parse_args()
    args.shapes = args.shapes or ["tiny" if args.quick else "llama-2-7b"]
    if args.quick:
        args.tokens, args.examples, args.repeats = min(args.tokens, 1024), min(args.examples, 12), 3
    if args.gpu is None:
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else GPUS["h200"].device
        args.gpu = next((key for key, gpu in GPUS.items() if gpu.device == name), None)
        if args.gpu is None:
            given.error(f"--gpu: {name} is not in the table: name the nearest of {', '.join(GPUS)}")
    if args.tokens < args.prefix + args.examples:
        given.error(f"--tokens {args.tokens}: must be room for the prefix and each of the examples")
    return args


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, CannotBuild) as error:
        sys.exit(str(error))
