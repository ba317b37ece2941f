"""A SLURM of one node on this machine: munged, slurmctld and slurmd with all their files in one folder.

Needs root and Debian's slurm-wlm and munge. Everything listens on this machine's loopback alone.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from lingo_ds.distributed.process_group import free_port

NEEDED = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue")

_CONFIG = """\
ClusterName=lingo
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no SLURM here; None where there can."""
    if os.geteuid() != 0:
        return "its daemons need root"
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    absent = [name for name in NEEDED if shutil.which(name, path=path) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class Cluster:
    """The cluster, up until `down`.

    Attributes:
        environment: what its clients need to find it.
    """

    def __init__(self, folder: Path):
        self._folder, self._daemons = folder, []
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}

    def up(self) -> None:
        """Starts the daemons and waits until the node takes jobs.

        Raises:
            RuntimeError: where it does not, with what the daemons said.
        """
        folder, host = self._folder, socket.gethostname().partition(".")[0]
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(
            _CONFIG.format(folder=folder, host=host, controller=free_port(), daemon=free_port())
        )
        for name in ("gpu0", "gpu1"):  # what jobs ask for; nobody opens it
            (folder / name).touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        places = {
            "key-file": "key",
            "socket": "socket",
            "pid-file": "pid",
            "log-file": "log",
            "seed-file": "seed",
        }
        options = [f"--{name}={folder}/munge.{ending}" for name, ending in places.items()]
        self._start("/usr/sbin/munged", "--foreground", "--force", *options)
        self._start("/usr/sbin/slurmctld", "-D", "-c")
        self._start("/usr/sbin/slurmd", "-D")
        deadline = time.monotonic() + 30
        while "idle" not in self.client("sinfo", "--noheader", "--format=%T").stdout:
            if time.monotonic() > deadline:
                raise RuntimeError("".join(path.read_text() for path in folder.glob("*.log")))
            time.sleep(0.5)

    def client(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs one of SLURM's commands."""
        env = {**os.environ, **self.environment}
        return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=60)

    def _start(self, *command: str) -> None:
        env = {**os.environ, **self.environment}
        with (self._folder / f"{Path(command[0]).name}.log").open("ab") as log:
            self._daemons.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))

    def down(self) -> None:
        """Cancels what runs, waits for its end, and ends the daemons."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.client("scancel", "--user=root")
            deadline = time.monotonic() + 60
            while self.client("squeue", "--noheader").stdout.strip() and time.monotonic() < deadline:
                time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster for as long as the block runs."""
    made = Cluster(folder)
    try:
        made.up()
        yield made
    finally:
        made.down()
