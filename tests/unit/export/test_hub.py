"""Publishing an adapter and reading it back, against a small server on this machine that speaks the hub."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lingo_ds.commands.cli import main
from lingo_ds.export.hub import is_hub_id
from lingo_ds.models.backbone.builtin import write_backbone
from lingo_ds.models.backbone.spec import read_spec
from tests.unit.commands.test_export import DNA, trained
from tests.unit.hub_server import Hub

PUBLISH = """
import contextlib, io, json, os, sys
import lingo_ds
from lingo_ds.commands.cli import main

folder, work, dna = json.loads(sys.argv[1])


def run(*words):
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        status = main(list(words))
    return status, shown.getvalue()


export = ["export", "--adapter", folder, "--backbone", "some/tiny", "--to", "lora"]
found = {
    "first": run(*export, "--output", f"{work}/one", "--push", "me/toy"),
    "again": run(*export, "--output", f"{work}/two", "--push", "me/toy"),
    "private": run(*export, "--output", f"{work}/three", "--push", "me/toy", "--private", "--overwrite"),
    "absent": run("export", "--adapter", "me/none", "--to", "lora", "--output", f"{work}/four"),
    "backbone": run("export", "--adapter", "some/tiny", "--to", "lora", "--output", f"{work}/five"),
    "other way": run("export", "--adapter", "me/toy@main", "--to", "adalora", "--output", f"{work}/six"),
}
found["here"], found["there"] = (
    lingo_ds.load(name).predict(dna).probabilities.tolist() for name in (folder, "me/toy")
)
os.environ["HF_TOKEN"] = "hf_expired"
found["expired"] = run(*export, "--output", f"{work}/seven", "--push", "me/other")
print("found", json.dumps(found))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Path]]:
    """A server that has the backbone of a trained adapter, and that adapter's folder."""
    work = tmp_path_factory.mktemp("hub")
    write_backbone(work / "tiny")
    adapter, _ = trained(work / "adapter", read_spec(work / "tiny"))
    hub = Hub({"some/tiny": {path.name: path.read_bytes() for path in (work / "tiny").iterdir()}})
    yield hub, adapter
    hub.close()


def environment(address: str, work: Path, token: str) -> dict[str, str]:
    """What a process needs to take the server for the hub, with nothing in its caches."""
    return os.environ | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(work / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": token,
        "LINGO_DS_CACHE": str(work / "cache"),
    }


def test_a_published_adapter_predicts_as_the_folder_does(hub, tmp_path):
    server, adapter = hub
    ended = subprocess.run(
        [sys.executable, "-c", PUBLISH, json.dumps([str(adapter), str(tmp_path), DNA])],
        env=environment(server.address, tmp_path, server.token),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    *shown, last = ended.stdout.splitlines()
    found = json.loads(last.removeprefix("found "))
    assert found["first"][0] == 0, found["first"]
    assert f"published: {server.address}/me/toy" in shown
    assert {"task.json", "adapter_config.json", "adapter_model.safetensors"} < set(server.models["me/toy"])
    front = server.models["me/toy"]["README.md"].decode().split("---")[1]
    assert "base_model: some/tiny" in front and "datasets" not in front, "toys is no data set of the hub"
    config = json.loads(server.models["me/toy"]["adapter_config.json"])
    assert config["base_model_name_or_path"] == "some/tiny"
    np.testing.assert_allclose(found["there"], found["here"], atol=1e-5)
    for name, words in {
        "again": ("--push: 'me/toy'", "is on the hub already", "--overwrite", f"{tmp_path}/two stays"),
        "private": ("--private: 'me/toy'", "is public"),
        "absent": ("--adapter: 'me/none'", "is neither a folder nor a model on the hub"),
        "expired": ("--push: 'me/other'", "run `hf auth login`", f"hf upload me/other {tmp_path}/seven"),
        "backbone": ("--adapter: 'some/tiny'", "lacks task.json"),
    }.items():
        status, said = found[name]
        assert status == 2 and said.startswith("error: ") and all(word in said for word in words), said
    assert (tmp_path / "two" / "task.json").exists(), "a folder stays that could not be uploaded"
    assert "me/other" not in server.models
    assert found["other way"][0] == 0 and (tmp_path / "six" / "task.json").exists()


def test_a_dry_run_lists_what_would_go_up_and_asks_nobody(hub, tmp_path, capsys):
    server, adapter = hub
    asked = len(server.asked)
    words = ["export", "--adapter", adapter, "--to", "merged", "--output", tmp_path / "out"]
    assert main([*map(str, words), "--push", "me/merged", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    listed = {line.split()[-1] for line in shown.splitlines() if line.startswith("  ")}
    assert {path.name for path in (tmp_path / "out").iterdir()} < listed
    assert "would be uploaded to" in shown and "me/merged (public)" in shown and "published" not in shown
    assert len(server.asked) == asked


@pytest.mark.parametrize(
    "name", ["toy", "a/b/c", "me/", "/toy", "me/to y", "../me", "me/a..b", "m/" + "x" * 95]
)
def test_what_is_no_hub_id_is_refused_before_anything_is_written(hub, name, tmp_path, capsys):
    _, adapter = hub
    out = tmp_path / "out"
    assert (
        main(["export", "--adapter", str(adapter), "--to", "lora", "--output", str(out), "--push", name]) == 2
    )
    assert "--push" in capsys.readouterr().err and not out.exists() and not is_hub_id(name)


def test_options_of_publishing_need_an_id_and_a_login(hub, tmp_path, capsys, monkeypatch):
    _, adapter = hub
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    words = ["export", "--adapter", str(adapter), "--to", "lora", "--output", str(tmp_path / "out")]
    for more, says in ((["--private"], "without --push"), (["--push", "me/toy"], "hf auth login")):
        assert main([*words, *more]) == 2
        assert says in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_comes_before_a_hub_id(hub, tmp_path, capsys, monkeypatch):
    """One that is there but holds no adapter is a mistake, which nobody is asked about."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "toy").mkdir(parents=True)
    assert main(["export", "--adapter", "me/toy", "--to", "lora", "--output", "out"]) == 2
    assert "is no folder of an adapter or a run" in capsys.readouterr().err
