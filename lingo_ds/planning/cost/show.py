"""A prediction in lines for a person, after the plan's own equations."""

from lingo_ds.planning.cost.elsewhere import Cluster
from lingo_ds.planning.cost.estimate import Estimate
from lingo_ds.planning.cost.machine import ACHIEVED
from lingo_ds.planning.cost.scenario import Scenario
from lingo_ds.planning.traffic import by_link
from lingo_ds.utils.units import as_bytes


def lines(job: Scenario, estimate: Estimate, place: Cluster, link: str) -> list[str]:
    """What `lingo-ds plan --gpu ..` prints between equations and advice."""
    assumed = ", ".join(f"{name} {share:.0%}" for name, share in ACHIEVED.items())
    parts = " + ".join(f"{as_bytes(size)} {part}" for part, size in estimate.memory.items())
    flops = " + ".join(f"{value:.3g} {part}" for part, value in estimate.flops.items())
    without, with_it = map(as_bytes, estimate.kept_by_layer)
    links = by_link(one.collective for one in estimate.sent)
    used = sum(estimate.flops.values()) / estimate.seconds / (job.machine.products[-1] / ACHIEVED["products"])
    return [
        f"machine    {place.hosts} hosts x {place.per_host} {job.machine.name}, {link} between hosts; "
        f"of the data sheets' peaks (assumed): {assumed}",
        f"peak       {parts} = {as_bytes(estimate.peak_bytes)} of {as_bytes(job.machine.memory_bytes)} "
        "per process",
        f"layer      keeps {without} of a forward's activations, {with_it} if computed again; "
        f"{job.plan.facts.layers} layers",
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
    ]  # fmt: skip
