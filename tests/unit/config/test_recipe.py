"""A recipe is read strictly: every mistake is told with its line, all at once, and nothing is guessed."""

import os
from pathlib import Path

import pytest

from lingo_ds.config.recipe import MAX_RECIPE_BYTES, MAX_RECIPE_MISTAKES
from lingo_ds.config.suite_config import Suite, load_runs
from lingo_ds.utils.errors import UserError
from lingo_ds.utils.resources import list_resources, resource_path
from tests.unit.config.recipes import MINIMAL, where


@pytest.mark.parametrize(
    "addition, field, nearest",
    [
        ("trian:\n  max_steps: 3\n", "trian (run.yaml:6)", "train"),
        ("sede: 3\n", "sede (run.yaml:6)", "seed"),
        ("train:\n  learning_rat: 0.1\n", "train.learning_rat (run.yaml:7)", "train.learning_rate"),
        ("train:\n  epochs: 3\n", "train.epochs (run.yaml:7)", "train.num_epochs"),
        ("zero: {stag: 3}\n", "zero.stag (run.yaml:6)", "zero.stage"),
    ],
)
def test_unknown_setting_is_named_with_its_line_and_the_nearest_known_one(refused, addition, field, nearest):
    (mistake,) = refused(MINIMAL + addition)
    assert mistake.where == field
    assert mistake.rule == "is not a known setting"
    assert mistake.fix == f"did you mean {nearest}?"


def test_unknown_setting_without_a_near_name_lists_the_known_ones(refused):
    (mistake,) = refused(MINIMAL + "head:\n  xyz: 1\n")
    assert mistake.where == "head.xyz (run.yaml:7)" and mistake.fix == "known here: pooling"


def test_a_section_given_twice_is_refused_rather_than_half_forgotten(refused):
    mistakes = refused(MINIMAL + "train:\n  learning_rate: 1.0e-5\ntrain:\n  max_steps: 3\n")
    assert "train" in str(mistakes[0]) and "run.yaml:8" in str(mistakes[0])


def test_all_mistakes_are_reported_at_once(refused):
    text = """\
name: a/b
backbone:
  path: [5]
data:
  pth: somewhere
train:
  learning_rate: fast
  max_steps: -1
zero: 5
"""
    mistakes = refused(text, "rank_sampling.rho=1", "nonsense")
    assert set(where(mistakes)) == {
        "command line",
        "name (run.yaml:1)",
        "backbone.path (run.yaml:3)",
        "data.path (run.yaml:4)",
        "data.pth (run.yaml:5)",
        "train.learning_rate (run.yaml:7)",
        "train.max_steps (run.yaml:8)",
        "rank_sampling.rho (command line)",
        "zero (run.yaml:9)",
    }
    assert len(mistakes) == 9


def test_required_settings_are_asked_for(refused):
    mistakes = refused("name: tata\nbackbone:\n  dtype: fp32\n")
    assert where(mistakes) == ["backbone.path (run.yaml:2)", "data (run.yaml)"]
    assert [mistake.fix for mistake in mistakes] == ["set backbone.path", "set data"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "[1, 2]\n", "quickstart\n"])
def test_file_that_is_no_mapping_is_refused(refused, tmp_path, text):
    (mistake,) = refused(text)
    assert mistake.where == str(tmp_path / "run.yaml") and "mapping" in mistake.rule


def test_file_that_is_not_utf8_or_not_there_is_refused(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9\n".encode("latin-1"))
    for path, rule in [
        (tmp_path / "latin.yaml", "is not UTF-8 text"),
        (tmp_path / "none.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ]:
        with pytest.raises(UserError) as caught:
            load_runs(path)
        (mistake,) = caught.value.mistakes
        assert mistake.rule == rule and str(path) in (mistake.where, str(mistake.value))


def test_what_is_no_recipe_is_not_read_to_an_end_that_may_never_come(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        load_runs(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        load_runs(Path("/dev/zero"))
    (mistake,) = refused(MINIMAL + "#" * MAX_RECIPE_BYTES)
    assert "holds more than" in mistake.rule


def test_of_very_many_mistakes_the_first_are_said_and_the_rest_is_counted(refused):
    mistakes = refused(MINIMAL + "".join(f"k{n}: 1\n" for n in range(1000)))
    assert (
        len(mistakes) == MAX_RECIPE_MISTAKES + 1
        and mistakes[-1].value == f"{1000 - MAX_RECIPE_MISTAKES} more"
    )


def test_no_key_or_value_writes_to_the_terminal(refused):
    (mistake,) = refused(MINIMAL + '"\\x1b[2J\\n\\u202e": "\\x1b[2J"\n')
    assert str(mistake).isprintable() and "x1b[2J" in str(mistake)
    (mistake,) = refused(MINIMAL + f"? {'k' * 100_000}\n: 1\n")
    assert len(str(mistake)) < 1000


@pytest.mark.parametrize(
    "override, value",
    [
        ("train.learning_rate=1e-4", 1e-4),
        ("train.learning_rate=2", 2.0),
        ("train.max_steps=100", 100),
        ("train.max_grad_norm=null", None),
        ("adapter.targets=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        (r"adapter.targets=layers\.\d\.mlp\..*", r"layers\.\d\.mlp\..*"),
        ("zero.stage=3", 3),
        ("zero.stage=auto", "auto"),
        ("zero.shard_group=2", 2),
        ("data.prefix='Sequence: {sequence}'", "Sequence: {sequence}"),
        ("backbone.path=/models/a=b", "/models/a=b"),
        ("name=other", "other"),
        ("name=no", "no"),
        ("rank_sampling.mode=off", "off"),
        ("data.packing=off", "off"),
        ("output_dir=/tmp/x", Path("/tmp/x")),
    ],
)
def test_override_wins_over_the_file_and_has_its_own_type(load, override, value):
    config = load(MINIMAL + "train:\n  learning_rate: 0.5\n  max_steps: 7\n  max_grad_norm: 3\n", override)
    found = config
    for part in override.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)
    assert config.model_fields_set >= {"name", "backbone", "data"}


def test_override_leaves_the_rest_of_its_section(load):
    config = load(MINIMAL + "train:\n  learning_rate: 0.5\n  max_steps: 7\n", "train.max_steps=9")
    assert (config.train.learning_rate, config.train.max_steps) == (0.5, 9)
    twice = load(MINIMAL, "train.max_steps=9", "train.max_steps=11")
    assert twice.train.max_steps == 11


@pytest.mark.parametrize("override", ["train.max_steps", "=3", "train..x=1", "--flag", "--flag=3", "", "5"])
def test_what_is_no_override_is_refused(refused, override):
    (mistake,) = refused(MINIMAL, override)
    assert (mistake.where, mistake.value) == ("command line", override)
    assert "section.field=value" in mistake.rule


@pytest.mark.parametrize(
    "override, field",
    [
        ("train.max_stepz=3", "train.max_stepz"),
        ("train.max_steps=many", "train.max_steps"),
        ("train.learning_rate=[1", "train.learning_rate"),
        ("train=5", "train"),
        ("seed=-1", "seed"),
        ("trian.max_steps=3", "trian"),
    ],
)
def test_mistaken_override_is_said_to_be_on_the_command_line(refused, override, field):
    assert where(refused(MINIMAL, override)) == [f"{field} (command line)"]


@pytest.mark.parametrize("name", list_resources("recipes"))
def test_every_recipe_loads_and_its_head_says_how_to_run_it(name):
    path = resource_path("recipes", name)
    runs = load_runs(path)
    assert (
        runs.config if isinstance(runs, Suite) else runs
    ).name == name  # so that runs/NAME is the recipe's
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--config recipes/{name}.yaml" in line for line in head)


def test_home_is_known_in_every_path_and_numbers_are_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: 7\nbackbone: {path: ~/llama}\ncheckpoint: {resume: ~/old}\noutput_dir: ~/out\n"
        "zero: {profile: ~/zero.json, nvme_path: ~/disk}\n"
        "data: {path: ~/x.bed, cache_dir: ~/cache, intervals: {genome: ~/g.fa, dev_chromosomes: [2]}}\n"
    )
    run = load_runs(path)
    assert (run.name, run.data.intervals.dev_chromosomes) == ("7", ("2",))
    found = [run.backbone.path, run.checkpoint.resume, run.output_dir, run.zero.profile, run.zero.nvme_path]
    found += [run.data.path, run.data.cache_dir, run.data.intervals.genome]
    names = ["llama", "old", "out", "zero.json", "disk", "x.bed", "cache", "g.fa"]
    assert [str(one) for one in found] == [f"/home/ada/{name}" for name in names]


@pytest.mark.parametrize("text", ["007", "1.10", "1e5", "12e4567", "0123456", "2"])
def test_a_number_that_names_something_is_what_was_written(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: x\nbackbone: {{path: {text}, revision: {text}}}\n"
        f"data: {{path: {text}, sequence_column: {text}}}\noutput_dir: {text}\n"
    )
    for run in (load_runs(path), load_runs(path, [f"backbone.revision={text}", f"data.path={text}"])):
        found = (run.backbone.path, run.backbone.revision, run.data.path, run.data.sequence_column)
        assert found == (text,) * 4 and str(run.output_dir) == text
