"""The plan of a run here; with `--gpu` plan, estimate and advice of a job elsewhere."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import Suite
from lingo_ds.distributed.job import job
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.planning.cost.advice import advise
from lingo_ds.planning.cost.elsewhere import Cluster, Lengths, make_scenario, read_shapes
from lingo_ds.planning.cost.estimate import estimate_step
from lingo_ds.planning.cost.machine import DEFAULT_LINK, gpu_machine
from lingo_ds.planning.cost.show import advice_table, lines
from lingo_ds.planning.fleet import GroupSize
from lingo_ds.planning.plan import RunPlan
from lingo_ds.training.setup import prepare
from lingo_ds.utils import logging as logs
from lingo_ds.utils.files import atomic_write


def plan(config: RunConfig, env: DistEnv) -> RunPlan:
    """The plan that `train` would follow, from config, data and the backbone's shapes; prints it."""
    with job(config.to_yaml(), env, output=config.run_dir):
        return plan_one(config, env)


def plan_one(config: RunConfig, env: DistEnv, *, group: GroupSize | None = None) -> RunPlan:
    """The plan inside of a job that has begun; `group` is as for `prepare`."""
    setup = prepare(config, env, group=group)
    if env.is_main:
        for line in setup.plan.equations():
            logs.results.print(line, highlight=False, soft_wrap=True)
    return setup.plan


def group_size(runs: RunConfig | Suite) -> GroupSize | None:
    """Processes of the group that each run is planned for; None: all."""
    in_groups = isinstance(runs, Suite) and runs.config.placement == "groups"
    return "auto" if in_groups else None


@dataclass(frozen=True, kw_only=True)
class ElsewhereRequest:
    """The machines that `plan --gpu` plans for, and data that is not on this one.

    Attributes:
        gpu: a name in `planning.cost.machine.GPUS`.
        hosts, gpus: number of hosts, and of GPUs in each.
        link: network of one host in bits per second, e.g. `8x400Gb`.
        lengths: rows and tokens of the data; None: the data is read.
        json_path: file for everything that was found.
    """

    gpu: str
    hosts: int = 1
    gpus: int = 8
    link: str = DEFAULT_LINK
    lengths: Lengths | None = None
    json_path: Path | None = None

    @property
    def cluster(self) -> Cluster:
        """The hosts; raises UserError for a GPU or a network that is not known."""
        return Cluster(hosts=self.hosts, per_host=self.gpus, machine=gpu_machine(self.gpu, self.link))


def plan_elsewhere(request: ElsewhereRequest, runs: RunConfig | Suite, env: DistEnv) -> None:
    """Prints plan, estimate and advice; for every task of a suite, or for one where `lengths` is given.

    Each setting of a grid has a plan of its own.

    Raises:
        UserError: for mistakes in config, input or arguments, or where nothing fits.
    """
    logs.quieten_libraries()
    cluster = request.cluster
    found = {}
    for title, config in _members(runs, request.lengths).items():
        shapes = read_shapes(config, env, request.lengths)
        plan_there = partial(make_scenario, shapes=shapes, cluster=cluster, group=group_size(runs))
        scenario = plan_there(config)
        estimate = estimate_step(scenario)
        advice = advise(config, scenario, plan_there)
        if title:
            logs.results.print(f"\n{title}", highlight=False, markup=False)
        for line in [*scenario.plan.equations(), *lines(scenario, estimate, cluster, request.link)]:
            logs.results.print(line, highlight=False, soft_wrap=True)
        logs.results.print(advice_table(advice, cluster))
        rows = [one._asdict() for one in advice]
        found[title] = {"plan": scenario.plan.to_dict(), "prediction": estimate.to_dict(), "advice": rows}
    if request.json_path:
        text = json.dumps(found.get("", found), indent=2)
        atomic_write(request.json_path, lambda aside: aside.write_text(text))


def _members(runs: RunConfig | Suite, lengths: Lengths | None) -> dict[str, RunConfig]:
    """Configs by task and setting, a single run's by ""; with `lengths` all tasks of a suite are alike."""
    if isinstance(runs, RunConfig):
        return {"": runs}
    first = runs.members[0].task
    return {one.title: one.config for one in runs.members if one.task == first or not lengths}
