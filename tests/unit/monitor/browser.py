"""Pages in a real browser: what it shows, complains about, and asks the network for."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium")

OF_ITSELF = ("google.com", "googleapis.com", "gvt1.com")
"""Hosts that the browser asks for itself."""


class Opened(NamedTuple):
    """A page as the browser shows it: its tree as HTML, messages of its console, hosts it asked for."""

    html: str
    console: list[str]
    hosts: set[str]


def open_page(path: Path, work: Path) -> Opened:
    """Opens a file in a browser without a window; `work` is a folder for the browser's own files."""
    log = work / "net.json"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
    ]
    flags += [
        f"--user-data-dir={work / 'profile'}",
        f"--log-net-log={log}",
        "--enable-logging=stderr",
        "--v=0",
    ]
    command = [str(BROWSER), *flags, "--dump-dom", path.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    events = json.loads(log.read_text())["events"]
    addresses = (event["params"]["url"] for event in events if "url" in event.get("params", {}))
    hosts = {urlsplit(address).hostname or "" for address in addresses}
    foreign = {host for host in hosts if host and not host.endswith(OF_ITSELF)}
    return Opened(ended.stdout, [line for line in ended.stderr.splitlines() if "CONSOLE" in line], foreign)
