"""What CONTRIBUTING promises: the hooks before a commit are `make lint`, the log is dated, newest first."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]


def test_hooks_run_what_make_lint_runs():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in settings["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == commands
    assert all(hook["language"] == "system" and not hook["pass_filenames"] for hook in hooks)


def test_the_log_is_dated_newest_first():
    headings = re.findall(r"^## (.*)$", (ROOT / "docs/log.md").read_text(), re.MULTILINE)
    dates = [re.fullmatch(r"(\d{4}-\d\d-\d\d): \S.*", heading) for heading in headings]
    assert all(dates), headings
    days = [found[1] for found in dates if found]
    assert days == sorted(days, reverse=True)


def test_targets_that_make_knows_are_in_its_help():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    helped = re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)
    assert sorted(phony[1].split()) == sorted(helped)
