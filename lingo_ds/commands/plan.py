"""The plan of a run here; with `--gpu` plan, estimate and advice of a job elsewhere."""

import json
from pathlib import Path

from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import Suite
from lingo_ds.distributed.job import job
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.planning.cost.advice import advise
from lingo_ds.planning.cost.elsewhere import Cluster, Lengths, make_job, read_shapes
from lingo_ds.planning.cost.estimate import estimate_step
from lingo_ds.planning.cost.machine import DEFAULT_LINK, gpu_machine
from lingo_ds.planning.cost.show import lines
from lingo_ds.planning.plan import RunPlan
from lingo_ds.training.setup import prepare
from lingo_ds.utils import logging as logs
from lingo_ds.utils.files import atomic_write


def plan(config: RunConfig, env: DistEnv) -> RunPlan:
    """The plan that `train` would follow, from config, data and the backbone's shapes; prints it."""
    with job(config.to_yaml(), env, output=config.run_dir):
        return plan_one(config, env)


def plan_one(config: RunConfig, env: DistEnv) -> RunPlan:
    """`plan` inside of a job."""
    setup = prepare(config, env)
    if env.is_main:
        for line in setup.plan.equations():
            logs.results.print(line, highlight=False, soft_wrap=True)
    return setup.plan


def plan_elsewhere(
    runs: RunConfig | Suite,
    env: DistEnv,
    *,
    hosts: int,
    gpus: int,
    gpu: str,
    link: str | None,
    tokens: int | None,
    rows: int | None,
    shared: int,
    json_path: Path | None,
) -> None:
    """Prints it; of a suite for every task, or once where `tokens` and `rows` describe the data.

    Raises:
        UserError: for mistakes in config, input or arguments, or where nothing fits.
    """
    logs.quieten_libraries()
    link = link or DEFAULT_LINK
    place = Cluster(hosts=hosts, per_host=gpus, machine=gpu_machine(gpu, link))
    lengths = None if tokens is None else Lengths(rows=rows, tokens=tokens, shared=shared)
    members = {"": runs}
    if isinstance(runs, Suite):
        members = {member.task: member.config for member in runs.members}
        members = dict(list(members.items())[:1]) if lengths else members
    found = {}
    for task, config in members.items():
        shapes = read_shapes(config, env, lengths)
        job = make_job(config, shapes, place)
        estimate = estimate_step(job)
        advice = advise(config, job, lambda changed, shapes=shapes: make_job(changed, shapes, place))
        if task:
            logs.results.print(f"\n{task}", highlight=False)
        for line in [*job.plan.equations(), *lines(job, estimate, place, link), "advice", *advice]:
            logs.results.print(line, highlight=False, soft_wrap=True)
        found[task] = {"plan": job.plan.to_dict(), "prediction": estimate.to_dict(), "advice": advice}
    if json_path:
        only = found.get("", found)
        atomic_write(json_path, lambda aside: aside.write_text(json.dumps(only, indent=2)))
