"""Two hosts on one machine: network namespaces joined by a cable, each with an address, a name and an sshd.

Needs root, iproute2, util-linux, openssh-server and pdsh. Nothing leaves the two namespaces, and nothing of
them stays: processes are killed by namespace, then the namespaces are removed.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lingo_ds.distributed.process_group import free_port
from tests.ranks.launching import BIN, CHECKOUT, RECIPE, Job

NEEDED = ("ip", "unshare", "pdsh", "ssh", "ssh-keygen", "sshd")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 2222


def missing() -> str | None:
    """Why there can be no hosts on this machine; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    absent = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    probe = f"lingo-probe-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True).returncode:
        return "network namespaces cannot be made here"
    subprocess.run(["ip", "netns", "del", probe], check=True)
    return None


class Hosts:
    """The two hosts, between `up` and `down`.

    Attributes:
        names: the hosts' names, as their processes know them.
    """

    def __init__(self, folder: Path):
        self._folder, self._spaces = folder, [f"lingo{os.getpid()}-{k}" for k in range(2)]
        self.names = ["node0", "node1"]
        folder.mkdir()

    def up(self) -> None:
        """Creates the namespaces, the cable and the keys, and starts an sshd in each."""
        for space in self._spaces:
            _do("ip", "netns", "add", space)
            _do("ip", "-n", space, "link", "set", "lo", "up")
        _do(
            *["ip", "link", "add", "eth0", "netns"],
            self._spaces[0],
            *["type", "veth", "peer", "name", "eth0", "netns"],
            self._spaces[1],
        )
        for space, address in zip(self._spaces, ADDRESSES, strict=True):
            _do("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            _do("ip", "-n", space, "link", "set", "eth0", "up")
        for key in ("user", "host"):
            _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / key))
        Path("/run/sshd").mkdir(exist_ok=True)
        for k in range(2):
            self._start_sshd(k)
        self._client().write_text(
            f"Host 10.77.0.*\n Port {PORT}\n IdentityFile {self._folder / 'user'}\n"
            " ServerAliveInterval 5\n ServerAliveCountMax 3\n"  # else ssh waits for a lost host for hours
            " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n LogLevel ERROR\n"
        )

    def _start_sshd(self, k: int) -> None:
        config = self._folder / f"sshd{k}"
        config.write_text(
            f"Port {PORT}\nHostKey {self._folder / 'host'}\nAuthorizedKeysFile {self._folder / 'user.pub'}\n"
            f"PidFile {config}.pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "PermitRootLogin yes\n"
        )
        _do(*self.inside(k, ["/usr/sbin/sshd", "-f", str(config)]))

    def inside(self, k: int, command: list[str]) -> list[str]:
        """The command that runs `command` on a host, under the host's name."""
        shell = f'hostname {self.names[k]} && exec "$@"'
        return ["ip", "netns", "exec", self._spaces[k], "unshare", "--uts", "sh", "-c", shell, "sh", *command]

    def hostfile(self, slots: int) -> Path:
        """A hostfile with so many processes on each host."""
        path = self._folder / "hosts"
        path.write_text("".join(f"{address} slots={slots}\n" for address in ADDRESSES))
        return path

    def environment(self) -> dict[str, str]:
        """Variables of whoever starts `deepspeed` on the first host."""
        variables = self._folder / "deepspeed_env"
        passed = {"GLOO_SOCKET_IFNAME": "eth0", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        variables.write_text("".join(f"{name}={value}\n" for name, value in passed.items()))
        return {
            "PDSH_SSH_ARGS": f"-F {self._client()} -oBatchMode=yes -l%u %h",
            "DS_ENV_FILE": str(variables),
        }

    def _client(self) -> Path:
        return self._folder / "ssh_config"

    def sent_bytes(self, k: int) -> int:
        """Bytes that a host has sent over the cable so far, frame headers included."""
        path = "/sys/class/net/eth0/statistics/tx_bytes"
        return int(subprocess.check_output(["ip", "netns", "exec", self._spaces[k], "cat", path]))

    def unplug(self, k: int) -> None:
        """Unplugs a host's cable."""
        _do("ip", "-n", self._spaces[k], "link", "set", "eth0", "down")

    def plug_in(self, k: int) -> None:
        """Plugs it in again."""
        _do("ip", "-n", self._spaces[k], "link", "set", "eth0", "up")

    def limit(self, rate: str | None) -> None:
        """Limits the cable to `rate` each way, in tc's notation (`100mbit`); None: no limit."""
        for space in self._spaces:
            subprocess.run(["tc", "-n", space, "qdisc", "del", "dev", "eth0", "root"], capture_output=True)
            if rate:
                # a burst of what passes in a few milliseconds, and never less than one large packet
                _do(
                    *["tc", "-n", space, "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate],
                    *["burst", "512kb", "latency", "500ms"],
                )

    def processes(self, k: int) -> list[int]:
        """Ids of the processes on a host, including its sshd."""
        listed = subprocess.run(["ip", "netns", "pids", self._spaces[k]], capture_output=True, text=True)
        return [int(word) for word in listed.stdout.split()]

    def kill(self, k: int) -> None:
        """Kills everything on a host at once, as a power cut does, and starts its sshd again."""
        self._end_all(k)
        self._start_sshd(k)

    def down(self) -> None:
        """Kills what runs on the hosts and removes them."""
        for k, space in enumerate(self._spaces):
            self._end_all(k)
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def _end_all(self, k: int) -> None:
        while found := self.processes(k):
            for process in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Two hosts while the block runs."""
    hosts = Hosts(folder)
    try:
        hosts.up()
        yield hosts
    finally:
        hosts.down()


class CableRun(NamedTuple):
    """A run over both hosts: its folder, and the bytes that the first host sent to the second meanwhile."""

    folder: Path
    sent: int

    @property
    def traffic(self) -> dict[str, Any]:
        """What the run reports of its traffic."""
        return json.loads((self.folder / "report.json").read_text())["traffic"]


def run_over_cable(
    start: Callable[..., Job], hosts: Hosts, folder: Path, overrides: list[str], *, slots: int
) -> CableRun:
    """Trains on both hosts, `slots` processes on each, in `folder`/run."""
    before = hosts.sent_bytes(0)
    output = f"output_dir={folder / 'run'}"
    ended = over_hosts(start, hosts, folder, [*overrides, output], slots=slots).wait(400)
    assert ended.status == 0, ended.output
    return CableRun(folder / "run", hosts.sent_bytes(0) - before)


def over_hosts(
    start: Callable[..., Job],
    hosts: Hosts,
    folder: Path,
    overrides: list[str],
    *,
    slots: int,
    hostfile: str | None = None,
) -> Job:
    """Starts training on both hosts as a user on the first one would; `hostfile`: its text, if another."""
    file = hosts.hostfile(slots)
    if hostfile:
        file.write_text(hostfile)
    launcher = [
        str(BIN / "deepspeed"),
        "--hostfile",
        str(file),
        "--master_addr",
        ADDRESSES[0],
        "--master_port",
        str(free_port()),
        "--no_ssh_check",
    ]
    script = [str(CHECKOUT / "launchers" / "train.py"), "--config", str(RECIPE)]
    return start(hosts.inside(0, [*launcher, *script, *overrides]), folder, **hosts.environment())


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
