"""Hub ids, against a small server on this machine that speaks the hub's endpoints."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lingo_ds.models.backbone.builtin import write_backbone
from tests.unit.hub_server import Hub

FIND = """
import json, logging, sys
from lingo_ds.models.backbone.hub import find_backbone
from lingo_ds.utils.errors import UserError
for path, revision, weights in json.loads(sys.argv[1]):
    try:
        folder = find_backbone(path, revision=revision, weights=weights)
        print(json.dumps(["found", sorted(file.name for file in folder.iterdir())]))
    except UserError as error:
        print(json.dumps(["refused", str(error)]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    write_backbone(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(files) -> Iterator[Hub]:
    """Small files are a sound model's; what is large must not be fetched."""
    small = {name: data for name, data in files.items() if name != "model.safetensors"}
    config = json.loads(files["config.json"])

    def told(**settings: object) -> bytes:
        return json.dumps(config | settings).encode()

    large = {"model.safetensors": None}
    hub = Hub(
        {
            "some/good": {**files, "pytorch_model.bin": None, "onnx/model.onnx": None},
            "some/pickle": {**small, "pytorch_model.bin": None},
            "some/gguf": {"model.Q4_K_M.gguf": None, "README.md": b"x"},
            "some/adapter": {
                "adapter_config.json": b'{"base_model_name_or_path": "some/base"}',
                "adapter_model.safetensors": None,
            },
            "some/gptq": {
                **small,
                **large,
                "config.json": told(quantization_config={"quant_method": "gptq", "bits": 4}),
            },
            "some/experts": {**small, **large, "config.json": told(num_experts=60)},
            "some/unknown": {**small, **large, "config.json": told(model_type="evo_9")},
            "some/gated": {**small, **large},
        }
    )
    yield hub
    hub.close()


def find(address: str, home: Path, *wanted: tuple[str, str | None, bool], offline: bool = False) -> list:
    """What becomes of each (path, revision, weights), in a process of its own with an empty cache."""
    here = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    here |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    ended = subprocess.run(
        [sys.executable, "-c", FIND, json.dumps(wanted)],
        env=here,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]


def test_what_is_no_backbone_is_named_before_its_weights_are_fetched(hub, tmp_path):
    words = {
        ("some/pickle", None): ("only as pickle files", 'from_pretrained("some/pickle")'),
        ("some/pickle", "main"): ('from_pretrained("some/pickle", revision="main")',),
        ("some/gguf", None): ("llama.cpp (model.Q4_K_M.gguf)",),
        ("some/adapter", None): ("an adapter in PEFT's format", "backbone.path=some/base"),
        ("some/gptq", None): ("GPTQ, 4 bits",),
        ("some/experts", None): ("60 in a layer",),
        ("some/unknown", None): ("is of type evo_9",),
        ("some/gated", None): ("is gated", f"{hub.address}/some/gated", "hf auth login"),
        ("some/absent", None): ("is neither a folder nor a model on the hub", "hf auth login"),
        ("opt-125m", None): ("OWNER/NAME", "the owner is missing"),
        ("some/good", "no-such-branch"): ("backbone.revision: 'no-such-branch'", "of some/good"),
        ("not an id", None): ("is neither a folder nor a hub id", "OWNER/NAME"),
        ("https://huggingface.co/some/good/tree/main", None): ("give its hub id: some/good",),
    }
    found = find(hub.address, tmp_path, *((path, revision, True) for path, revision in words))
    for (path, expected), (how, said) in zip(words.items(), found, strict=True):
        assert how == "refused" and all(word in said for word in expected), (path, said)
        assert said.startswith("error: backbone.") and "\n" not in said
    assert not [path for path in hub.asked if "/resolve/" in path and path.endswith((".bin", ".gguf"))]


def test_a_good_model_is_fetched_without_what_is_not_needed(hub, files, tmp_path):
    ((how, names),) = find(hub.address, tmp_path, ("some/good", None, False))
    assert how == "found" and "model.safetensors" not in names and "config.json" in names
    ((how, names),) = find(hub.address, tmp_path, ("some/good", None, True))
    assert how == "found" and set(names) == set(files)
    asked = len(hub.asked)
    ((how, names),) = find(hub.address, tmp_path, ("some/good", None, True), offline=True)
    assert how == "found" and set(names) == set(files)
    assert len(hub.asked) == asked, "offline means that nobody is asked"


@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
def test_without_a_connection_it_says_how_to_fetch_the_model(tmp_path, offline):
    nobody = "http://127.0.0.1:9"
    ((how, said),) = find(nobody, tmp_path, ("some/good", "v1", True), offline=offline)
    assert how == "refused"
    assert "`hf download some/good --revision v1 --local-dir good` on a connected machine" in said
    assert ("HF_HUB_OFFLINE is set" in said) == offline
    assert ("cannot be reached" in said) == (not offline)


def test_the_command_that_fetches_a_model_runs(hub, files, tmp_path):
    """As it is printed, for a model that holds nothing large."""
    hub.models["some/small"] = dict(files)
    ((_, said),) = find("http://127.0.0.1:9", tmp_path / "nothing", ("some/small", None, True), offline=True)
    command = said.split("`")[1]
    here = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    here |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HF_HUB_DISABLE_XET": "1"}
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=here, capture_output=True, timeout=120)
    ((how, _),) = find(hub.address, tmp_path, (str(tmp_path / "small"), None, True), offline=True)
    assert how == "found"
