"""Before anything is read: whether the job's hosts are alike, as every process answers for its own."""

import logging
import os
import socket
from typing import Any

from lingo_ds import distributed
from lingo_ds.distributed import DistEnv
from lingo_ds.errors import Mistake, UserError
from lingo_ds.monitor.report import versions

logger = logging.getLogger(__name__)


def require_alike(env: DistEnv) -> None:
    """Compares all hosts with that of global rank 0, and says where a host has more processes than cores.

    Raises:
        UserError: on every process, where a host has other versions, for each host and library.
    """
    if env.world_size == 1:
        return
    hosts: dict[str, dict[str, Any]] = {}
    for facts in distributed.share_from_all(own_facts(env), env):
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
    """What this process knows of its host."""
    return {
        "host": socket.gethostname(),
        "processes": env.local_world_size,
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
    }
