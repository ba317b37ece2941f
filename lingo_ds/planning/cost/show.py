"""An estimate in lines and its advice as a table, for a person to read after the plan's own equations."""

from collections.abc import Sequence

from rich.table import Table

from lingo_ds.planning.cost.advice import Alternative
from lingo_ds.planning.cost.elsewhere import Cluster
from lingo_ds.planning.cost.estimate import Estimate
from lingo_ds.planning.cost.machine import ACHIEVED
from lingo_ds.planning.cost.scenario import Scenario
from lingo_ds.planning.memory import USABLE_MEMORY
from lingo_ds.planning.traffic import by_link
from lingo_ds.utils.units import GIB, as_bytes


def lines(scenario: Scenario, estimate: Estimate, cluster: Cluster, link: str) -> list[str]:
    """Lines that `lingo-ds plan --gpu ..` prints between equations and advice."""
    assumed = ", ".join(f"{name} {share:.0%}" for name, share in ACHIEVED.items())
    parts = " + ".join(f"{as_bytes(size)} {part}" for part, size in estimate.memory.items())
    flops = " + ".join(f"{value:.3g} {part}" for part, value in estimate.flops.items())
    without, with_it = map(as_bytes, estimate.kept_by_layer)
    links = by_link(one.collective for one in estimate.sent)
    used = (
        sum(estimate.flops.values())
        / estimate.seconds
        / (scenario.machine.products[-1] / ACHIEVED["products"])
    )
    return [
        f"machine    {cluster.hosts} hosts x {cluster.per_host} {scenario.machine.name}, {link} between "
        f"hosts; of the data sheets' peaks (assumed): {assumed}",
        f"peak       {parts} = {as_bytes(estimate.peak_bytes)} of {as_bytes(scenario.machine.memory_bytes)} "
        "per process",
        f"layer      keeps {without} of a forward's activations, {with_it} if computed again; "
        f"{scenario.plan.facts.layers} layers",
        f"flops      {flops} = {sum(estimate.flops.values()):.3g} per process and step",
        *(
            f"sent       {as_bytes(one.collective.sent)} {one.collective.name} {one.collective.what} over "
            f"{one.collective.group} processes, {one.collective.link} hosts: {one.seconds:.4f} s, "
            f"{one.exposed:.4f} s of it exposed"
            for one in estimate.sent
        ),
        f"links      {as_bytes(links['inside'])} inside hosts, {as_bytes(links['between'])} between, "
        "per process and step",
        f"step       {estimate.compute:.4f} s passes + {estimate.exposed:.4f} s exposed communication + "
        f"{estimate.update:.4f} s update = {estimate.seconds:.4f} s",
        f"rate       {estimate.tokens_per_second:,.0f} tokens/s, "
        f"{estimate.examples / estimate.seconds:,.0f} examples/s, "
        f"{estimate.epochs_per_hour:.3g} epochs an hour; {used:.0%} of the peak",
        f"budget     {estimate.most_tokens:,} tokens of a forward fit at most",
    ]


def advice_table(alternatives: Sequence[Alternative], cluster: Cluster) -> Table:
    """The alternatives beside one another, the best marked."""
    usable = as_bytes(USABLE_MEMORY * cluster.machine.memory_bytes)
    table = Table(
        title=f"advice: what fits stays below {usable} per process, * is the best",
        title_justify="left",
        caption=None if any(one.fits for one in alternatives) else "nothing fits: add processes",
        caption_justify="left",
    )
    for column in ("", "alternative"):
        table.add_column(column)
    for column in ("GiB per process", "seconds per step", "of it exposed", "fits"):
        table.add_column(column, justify="right")
    for one in alternatives:
        size = "-" if one.bytes_per_process is None else f"{one.bytes_per_process / GIB:.2f}"
        table.add_row(
            "*" if one.best else "",
            one.setting,
            size,
            "-" if one.seconds is None else f"{one.seconds:.4f}",
            "-" if one.exposed is None else f"{one.exposed:.4f}",
            "yes" if one.fits else "no",
        )
    return table
