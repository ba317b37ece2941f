"""YAML 1.2's scalars, without aliases and tags, and what is written reads back."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import load_runs
from tests.unit.config.recipes import MINIMAL


@pytest.mark.parametrize(
    "text, line",
    [
        ("name: [a\nbackbone: x\n", 2),
        ("name: a\n\tb: c\n", 2),
        ("name: a\nbackbone: *unknown\n", 2),
        ("name: a\n---\nname: b\n", 2),
        ("name: !!python/object/apply:os.getcwd []\n", 1),
    ],
)
def test_yaml_that_is_none_names_the_line(refused, tmp_path, text, line):
    (mistake,) = refused(text)
    assert mistake.where == f"{tmp_path / 'run.yaml'}:{line}"
    assert mistake.rule == "is not valid YAML"


@pytest.mark.parametrize(
    "line, says",
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\n", "alias"),
        ("a: &a [*a]\n", "alias"),
        ("a: !!set {b}\n", "tag"),
        (f"a: {'[' * 40}{']' * 40}\n", "levels"),
        (f"a: {'9' * 5000}\n", "digits"),
        ('a: "\\U00110000"\n', "not in range"),
        ("a\0b: 1\n", "unacceptable character"),
    ],
)
def test_yaml_that_stands_for_more_than_is_written_is_refused(refused, line, says):
    (mistake,) = refused(MINIMAL + line)
    assert mistake.rule == "is not valid YAML" and says in str(mistake)


@given(text=st.text() | st.floats().map(str) | st.integers().map(str))
@example("1e5").via("a number in YAML 1.2, text in 1.1")
@example("off").via("a switch in YAML 1.1, text in 1.2")
@example("1:30").via("a number in YAML 1.1")
@example("null").via("a word that means something")
@settings(max_examples=60, deadline=None)
def test_any_text_survives_writing(tmp_path_factory, text):
    config = RunConfig.model_validate(yaml.safe_load(MINIMAL) | {"data": {"path": "x", "domain": text}})
    written = tmp_path_factory.getbasetemp() / "any_text.yaml"
    written.write_text(config.to_yaml(), encoding="utf-8")
    assert load_runs(written) == config
