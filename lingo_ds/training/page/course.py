"""How a run went, for its page: training curves, where the ranks went, speed and memory, how to repeat it."""

import shlex
from typing import Any

from lingo_ds.monitor.html_report import (
    Block,
    Cell,
    Code,
    Column,
    LinkCell,
    PageTable,
    Picture,
    Pictures,
    Text,
)
from lingo_ds.monitor.metrics_log import Curve
from lingo_ds.training.page.record import PAGE, RunRecord, value_at
from lingo_ds.training.page.words import duration, joined, metric_name
from lingo_ds.utils.units import as_bytes

MAX_SITES = 2000
"""Adapted maps of the largest map of ranks that is drawn: more could not be told apart."""

FILES = {
    "report.json": "every number of this page and more",
    "config.yaml": "all settings",
    "plan.json": "the plan: batch, steps, memory",
    "adapter": "the adapter, in PEFT's format",
    "predictions/test.parquet": "answer to each sequence of test",
    "predictions/dev.parquet": "answer to each sequence of dev",
    "metrics.jsonl": "loss, metrics, speed of each step, as JSON lines",
    "tensorboard": "the same for TensorBoard",
    "pictures": "pictures of the ranks",
    "train.log": "the log",
}
"""What a run leaves beside its page."""


def curve_blocks(record: RunRecord) -> list[Block]:
    """Loss, dev metric and learning rate over the steps."""
    from lingo_ds.monitor.report_plots import Line, draw_curves

    pictures, selected = [], value_at(record.report, "selected_step") or None
    if loss := record.curves.get("train/loss"):
        data = draw_curves([Line("", *_smooth(loss))], y_label="loss (running mean)")
        alt = f"Training loss over steps: from {loss.values[0]:.4g} to {loss.values[-1]:.4g}."
        pictures.append(Picture("Loss on train", data, alt, "It should fall and then level out."))
    if dev := record.curves.get(f"dev/{record.metric}"):
        name = metric_name(record.metric)
        data = draw_curves(
            [Line("", *dev)], y_label=f"{name} on dev", marks=True, selected=selected, span=0.1
        )
        best = max(dev.values)
        alt = f"{name} on dev over steps: at best {best:.3f}, last {dev.values[-1]:.3f}."
        note = f"The dotted line is step {selected:,}, whose adapter was kept." if selected else ""
        pictures.append(Picture(f"{name} on dev", data, alt, note))
    if rate := record.curves.get("train/lr"):
        data = draw_curves([Line("", *rate)], y_label="learning rate")
        alt = f"Learning rate over steps: at most {max(rate.values):.3g}, at the end {rate.values[-1]:.3g}."
        pictures.append(Picture("Learning rate", data, alt))
    return [Pictures(pictures)] if pictures else [Text("The run has recorded no curves.")]


def _smooth(curve: Curve) -> tuple[list[int], list[float]]:
    """Running means over a twentieth of the steps: single batches scatter widely."""
    window, means, total = max(1, len(curve.values) // 20), [], 0.0
    for place, value in enumerate(curve.values):
        total += value - (curve.values[place - window] if place >= window else 0.0)
        means.append(total / min(place + 1, window))
    return curve.steps, means


# -- ranks


def rank_blocks(record: RunRecord) -> list[Block]:
    """Where the ranks went; none where the run had no rank sampling."""
    found = value_at(record.report, "rank_sampling") or {}
    ranks, history = found.get("ranks") or {}, found.get("history") or []
    if found.get("mode") in (None, "off") or not ranks:
        return []
    blocks: list[Block] = [Text(_about_ranks(found))]
    pictures = []
    if len(ranks) <= MAX_SITES:
        pictures.append(_rank_map(ranks, found))
    if history:
        pictures.append(_budget(history))
    return [*blocks, Pictures(pictures)] if pictures else blocks


def _about_ranks(found: dict[str, Any]) -> str:
    kept, initial, target = (found.get(f"{name}_triplets") or 0 for name in ("kept", "initial", "target"))
    events, returned = (found.get(name) or 0 for name in ("mask_events", "returned_triplets"))
    shares = value_at(found, "shares.by_kind") or {}
    most = sorted(shares, key=lambda kind: -shares[kind])[:2]
    where = joined([f"{kind} ({shares[kind]:.0%})" for kind in most]) if most else "no map"
    return (
        f"The adapters began with {initial:,} ranks (triplets) and keep {kept:,} of a budget of {target:,}: "
        f"those that mattered most to the loss. In {events:,} changes of the masks {returned:,} pruned ones "
        f"were given back. Most of what is kept lies in {where}."
    )


def _rank_map(ranks: dict[str, int], found: dict[str, Any]) -> Picture:
    from lingo_ds.monitor.rank_plots import draw_rank_map
    from lingo_ds.monitor.report_plots import png

    initial = max(1, (found.get("initial_triplets") or 0) // len(ranks))
    data = png(draw_rank_map(ranks, initial_rank=max(initial, *ranks.values()), title=""))
    empty = sum(rank == 0 for rank in ranks.values())
    alt = (
        f"Map of the rank kept at each of {len(ranks)} adapted maps by layer: from {min(ranks.values())} to "
        f"{max(ranks.values())}, {empty} of them without any."
    )
    note = (
        f"Rows are kinds of maps, columns layers; each began with rank {initial}. {empty} of "
        f"{len(ranks)} kept none."
    )
    return Picture("Rank kept by each map", data, alt, note)


def _budget(history: list[dict[str, Any]]) -> Picture:
    from lingo_ds.monitor.rank_plots import draw_budget
    from lingo_ds.monitor.report_plots import png

    events = [(one["step"], one["budget"], one["kept"], one["returned"]) for one in history]
    first, last = events[0], events[-1]
    alt = f"Budget of ranks over steps: from {first[1]:,} to {last[1]:,}; kept at the end {last[2]:,}."
    return Picture("Budget over the run", png(draw_budget(events)), alt)


# -- speed and memory


def speed_blocks(record: RunRecord) -> list[Block]:
    """Throughput, and memory against the plan."""
    if not record.report:
        return []
    report = record.report
    rows: list[list[Cell]] = []
    for words, key, form in (
        ("tokens per second", "throughput.tokens_per_second", ",.0f"),
        ("sequences per second", "throughput.examples_per_second", ",.1f"),
        ("share of the devices' peak (MFU)", "throughput.mfu", ".1%"),
        ("share of time spent waiting for input", "throughput.input_wait_fraction", ".1%"),
        ("share of time spent waiting for checkpoints", "checkpoints.stall_fraction", ".1%"),
        ("share of tokens that are padding", "throughput.padding_fraction", ".1%"),
        ("share of tokens that packs have in common", "throughput.shared_prefix_fraction", ".1%"),
        ("processes", "world_size", ",d"),
        ("processes that share one copy of the backbone", "zero.shard_group", ",d"),
        ("ZeRO stage", "zero.stage", "d"),
    ):
        value = value_at(report, key)
        rows.append([words, "not known here" if value is None else format(value, form)])
    seconds = value_at(report, "throughput.seconds") or 0
    rows.insert(0, ["time of the training steps", duration(seconds)])
    speed = PageTable("Speed", [Column("what"), Column("value", numeric=True)], rows)
    return [speed, *_memory(record)]


def _memory(record: RunRecord) -> list[Block]:
    """The plan's parts and their sum against the peak of the process that needed most."""
    parts = record.plan.get("bytes_per_process") or {}
    rows: list[list[Cell]] = [[name, as_bytes(size), ""] for name, size in parts.items() if size]
    device = [peak for peak in value_at(record.report, "memory.peak_device_bytes") or [] if peak]
    host = [peak for peak in value_at(record.report, "memory.peak_host_bytes") or [] if peak]
    peaks, where = (device, "device") if device else (host, "host")
    planned = sum(parts.values())
    note = ""
    if peaks and planned:
        rows.append([f"all, per process ({where})", as_bytes(planned), as_bytes(max(peaks))])
        more = max(peaks) / planned - 1
        than = "more than" if more > 0 else "less than"
        note = f"The process that needed most took {abs(more):.0%} {than} planned."
    if device and host:
        rows.append(["host memory per process", "", as_bytes(max(host))])
    if not rows:
        return []
    columns = [Column("memory"), Column("planned", numeric=True), Column("measured peak", numeric=True)]
    return [PageTable("Memory against the plan", columns, rows, note=note)]


# -- how to repeat it


def repeat_blocks(record: RunRecord) -> list[Block]:
    """The command, the versions, and what lies beside the page."""
    config = shlex.quote(str(record.folder / "config.yaml"))
    world = value_at(record.report, "world_size") or value_at(record.plan, "facts.world_size") or 1
    start = "lingo-ds train"
    if world > 1:
        local = value_at(record.plan, "facts.local_world_size") or world
        hosts = " --hostfile HOSTS" if world > local else ""
        start = f"deepspeed{hosts} --num_accelerators {local} launchers/train.py"
    lines = [
        "# train the same again, into another folder",
        f"{start} --config {config} output_dir=runs/again",
        "# answer new sequences",
        f"lingo-ds predict --adapter {shlex.quote(str(record.folder))} --input new.fa --output new.csv",
        "# make this page anew",
        f"lingo-ds report {shlex.quote(str(record.folder))}",
    ]
    blocks: list[Block] = [Code("", "\n".join(lines))]
    if versions := record.report.get("versions"):
        facts: list[list[Cell]] = [["seed", str(value_at(record.config, "seed"))]]
        facts.append(["fingerprint of the data", value_at(record.report, "data.fingerprint") or ""])
        facts += [[name, version] for name, version in versions.items()]
        blocks.append(PageTable("Made with", [Column("what"), Column("version")], facts))
    there = [(name, what) for name, what in FILES.items() if (record.folder / name).exists()]
    rows: list[list[Cell]] = [[LinkCell(name, name), what] for name, what in there]
    if rows:
        blocks.append(PageTable(f"Beside {PAGE}", [Column("file"), Column("what is in it")], rows))
    return blocks
