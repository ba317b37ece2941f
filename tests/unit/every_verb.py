"""One backbone given to every verb that takes one."""

import contextlib
import io
from pathlib import Path

from lingo_ds.commands.cli import main

VERBS = ("train", "plan", "plan --gpu", "predict", "export", "explain", "scan")


def give(verb: str, backbone: object, work: Path, adapter: Path, *settings: str) -> tuple[int, str]:
    """Exit status of a verb and what it says; the data and the input do not exist.

    Args:
        verb: one of `VERBS`.
        backbone: a folder or a hub id.
        work: folder for what is written.
        adapter: an adapter folder, of another backbone.
        settings: further settings of train or plan.
    """
    recipe = ["--config", "quickstart", f"output_dir={work / 'run'}", f"backbone.path={backbone}"]
    recipe += [f"data.path={work / 'no data'}", *settings]
    saved = ["--adapter", str(adapter), "--backbone", str(backbone), "--output", str(work / "out.csv")]
    track = str(work / "out.bedgraph")
    words = {
        "train": ["train", *recipe],
        "plan": ["plan", *recipe],
        "plan --gpu": ["plan", "--gpu", "h200", *recipe],
        "predict": ["predict", *saved, "--input", str(work / "none.csv"), *settings],
        "export": ["export", *saved, "--to", "merged"],
        "explain": ["explain", *saved, "--input", str(work / "none.csv"), "--pictures", "0", *settings],
        "scan": [
            "scan",
            *saved[:4],
            "--output",
            track,
            "--genome",
            str(work / "none.csv"),
            "--step",
            "9",
            *settings,
        ],
    }[verb]
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
        status = main(words)
    return status, shown.getvalue()


def refused(verb: str, backbone: object, work: Path, adapter: Path, *settings: str) -> str:
    """The mistakes with which a verb refuses a backbone, each on its line."""
    status, shown = give(verb, backbone, work, adapter, *settings)
    assert status == 2, shown
    assert "no data" not in shown and "none.csv" not in shown, "the data were looked for first"
    return "\n".join(line for line in shown.splitlines() if line.startswith("error: "))
