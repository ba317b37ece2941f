"""The context of every command: process group, watchdog, equal hosts, and full disks reported."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lingo_ds.distributed import agreement, process_group, watchdog
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import report_disk_full
from lingo_ds.utils.versions import versions

logger = logging.getLogger(__name__)


@contextmanager
def job(config_text: str, env: DistEnv, *, output: Path) -> Iterator[None]:
    """Joins the job's processes while inside, and checks that all of them have the same config.

    Args:
        config_text: the resolved config as YAML, which must be the same on all processes.
        env: this process's rank and device.
        output: the file or folder that the command writes to.

    Raises:
        UserError: where hosts or configs differ, or nothing more can be written to `output`.
    """
    logs.quieten_libraries()
    if env.world_size > 1:
        process_group.start(env)
    try:
        with watchdog.watching(env), report_disk_full(output):
            require_alike(env)
            agreement.require_equal(config_text, "config", env)
            yield
    finally:
        process_group.stop()


def require_alike(env: DistEnv) -> None:
    """Compares all hosts with that of global rank 0; warns of hosts with more processes than cores.

    Raises:
        UserError: on every process, with one mistake per host and library whose version differs.
    """
    if env.world_size == 1:
        return
    hosts: dict[str, dict[str, Any]] = {}
    for facts in agreement.all_gather_json(own_facts(env), env):
        hosts.setdefault(facts["host"], facts)
    first, *others = hosts.values()
    fix = "install the same versions on all hosts"
    mistakes = [
        Mistake(f"host {other['host']}", f"{library} {version}", f"is {expected} on {first['host']}", fix)
        for other in others
        for library, expected in first["versions"].items()
        if (version := other["versions"][library]) != expected
    ]
    if mistakes:
        raise UserError(mistakes, on_all=True)
    for facts in hosts.values():
        if env.is_main and env.device.type == "cpu" and facts["processes"] > facts["cores"]:
            logger.warning(
                "host %s runs %d processes on %d cores", facts["host"], facts["processes"], facts["cores"]
            )


def own_facts(env: DistEnv) -> dict[str, Any]:
    """Name, processes, cores and library versions of this process's host."""
    return {
        "host": socket.gethostname(),
        "processes": env.local_world_size,
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
    }
