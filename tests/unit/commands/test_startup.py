"""What a start imports, and what it need not read again."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from lingo_ds.commands.cli import VERBS, main
from lingo_ds.models.backbone import spec as spec_module
from lingo_ds.models.backbone import tokenizer as tokenizer_module
from lingo_ds.models.backbone.builtin import write_backbone
from lingo_ds.models.backbone.spec import read_spec
from lingo_ds.models.backbone.tokenizer import CachedTokenizer
from lingo_ds.utils.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[3]
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "datasets",
    "pandas",
    "pyarrow",
    "deepspeed",
    "matplotlib",
    "scipy",
    "sklearn",
    "rich",
    "pydantic",
    "yaml",
}
"""Libraries that take long to import."""

NOT_FOR_A_PLAN = {
    "transformers.modeling_utils",
    "transformers.models.llama",
    "torch._dynamo",
    "torch.distributed.tensor",
    "deepspeed",
    "datasets",
    "pandas",
    "matplotlib",
    "sklearn",
    "scipy.stats",
}
"""What a plan need not import, once shapes and data were read."""


def imported(*commands: tuple[str, ...], cache: Path) -> list[set[str]]:
    """Modules that a process of `lingo-ds` has imported after each of some commands."""
    code = f"""
import sys
from lingo_ds.commands.cli import main
for words in {[list(words) for words in commands]!r}:
    try:
        main(words)
    except SystemExit:
        pass
    print("modules", *sys.modules)
"""
    env = os.environ | {"LINGO_DS_CACHE": str(cache), "DS_ACCELERATOR": "cpu"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, env=env, capture_output=True, text=True, check=True
    )
    return [set(line.split()[1:]) for line in ended.stdout.splitlines() if line.startswith("modules ")]


def test_help_imports_no_library(tmp_path):
    helps = [("--help",), *((verb, "--help") for verb in VERBS)]
    found = imported(*helps, cache=tmp_path)
    assert [HEAVY & modules for modules in found] == [set()] * len(helps)


def test_a_plan_imports_no_model_code_once_its_inputs_were_read(tmp_path):
    here = ("plan", "--config", "quickstart", f"output_dir={tmp_path / 'out'}")
    elsewhere = (*here[:3], "--hosts", "2", "--gpu", "h200", here[3])
    first, again = (imported(here, elsewhere, cache=tmp_path) for _ in range(2))
    assert "transformers.modeling_utils" in first[0]
    assert [NOT_FOR_A_PLAN & modules for modules in again] == [set(), set()]


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_a_command(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    *_, title, example = capsys.readouterr().out.splitlines()
    assert title == "example:" and example.startswith(f"  lingo-ds {verb} ") and len(example.split()) > 2


@pytest.fixture
def folder(tmp_path) -> Path:
    write_backbone(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_kept_shapes_are_those_that_were_read(folder, tmp_path, monkeypatch):
    fresh = read_spec(folder, cache=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(spec_module, "_build_spec", lambda *_, **__: pytest.fail("was read again"))
        kept = read_spec(folder, cache=tmp_path / "cache")
    assert asdict(kept) == asdict(fresh) == asdict(read_spec(folder))
    assert kept.layer_classes == fresh.layer_classes
    shapes = [{n: p.shape for n, p in spec.skeleton.named_parameters()} for spec in (kept, fresh)]
    assert shapes[0] == shapes[1] and len(shapes[0]) == 2 + 3 * 9


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": 3}'])
def test_damaged_shapes_are_read_anew(folder, tmp_path, text):
    expected = read_spec(folder, cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / "shapes").iterdir()
    kept.write_text(text)
    assert asdict(read_spec(folder, cache=tmp_path / "cache")) == asdict(expected)


def test_another_config_has_other_shapes(folder, tmp_path):
    assert read_spec(folder, cache=tmp_path / "cache").layers == 3
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert read_spec(folder, cache=tmp_path / "cache").layers == 2
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        read_spec(folder, cache=tmp_path / "cache")


def test_a_known_tokenizer_is_loaded_only_when_it_is_used(folder, tmp_path, monkeypatch):
    loads, load = [], tokenizer_module.read_tokenizer
    monkeypatch.setattr(
        tokenizer_module, "read_tokenizer", lambda *given, **how: loads.append(given) or load(*given, **how)
    )

    def own() -> CachedTokenizer:
        return CachedTokenizer(folder, trust_remote_code=False, cache=tmp_path / "cache")

    first, again = own(), own()
    assert first.fingerprint == again.fingerprint and len(loads) == 1
    assert again.loaded("AC")["input_ids"] == first.loaded("AC")["input_ids"] and len(loads) == 2
    path = folder / "tokenizer.json"
    text = json.loads(path.read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary["A"], vocabulary["C"] = vocabulary["C"], vocabulary["A"]
    path.write_text(json.dumps(text))
    assert own().fingerprint != first.fingerprint and len(loads) == 3
