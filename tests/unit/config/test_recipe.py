"""A recipe is read strictly: every mistake is said with its line, all at once, and nothing is guessed."""

import os
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lingo_ds.config.fields import Section
from lingo_ds.config.recipe import MAX_RECIPE_BYTES, MAX_RECIPE_MISTAKES, load_config
from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import Suite, load_runs
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.resources import list_resources, resource_path

MINIMAL = """\
name: tata
backbone:
  path: builtin:tiny
data:
  path: builtin:promoters
"""


@pytest.fixture
def load(tmp_path):
    """Reads a recipe's text, with overrides."""

    def load(text: str = MINIMAL, *overrides: str) -> RunConfig:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path, list(overrides))

    return load


@pytest.fixture
def refused(load):
    """The mistakes in a recipe's text and overrides."""

    def refused(text: str = MINIMAL, *overrides: str) -> list[Mistake]:
        with pytest.raises(UserError) as caught:
            load(text, *overrides)
        lines = str(caught.value).splitlines()
        assert all(line.startswith("error: ") for line in lines)
        return caught.value.mistakes

    return refused


def where(mistakes: list[Mistake]) -> list[str]:
    return [mistake.where for mistake in mistakes]


def set_to(field: str, value: str) -> str:
    """A recipe in which one field has a value, on line 8 where its section is not a required one."""
    section, name = field.split(".")
    if name == "path":
        return re.sub(rf"(?<={section}:\n  path: ).*", value, MINIMAL)
    if section in ("backbone", "data"):
        return MINIMAL.replace(f"{section}:\n", f"{section}:\n  {name}: {value}\n")
    return f"{MINIMAL}# a comment\n{section}:\n  {name}: {value}\n"


# -- what is not a setting


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
  path: 5
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


# -- what is not a value


@pytest.mark.parametrize(
    "field, value",
    [
        ("backbone.path", "5"),
        ("backbone.dtype", "fp8"),
        ("backbone.trust_remote_code", "maybe"),
        ("data.path", "[a]"),
        ("data.max_length", "0"),
        ("data.packing", "on"),
        ("data.format", "excel"),
        ("data.label_column", "[]"),
        ("data.label_column", "[a, a]"),
        ("data.class_names", "[a, b, a]"),
        ("data.one_hot_order", "ACGA"),
        ("data.dev_fraction", "0"),
        ("data.test_fraction", "1"),
        ("data.split_seed", "-1"),
        ("adapter.method", "dora"),
        ("adapter.method", "null"),
        ("adapter.rank", "2.5"),
        ("adapter.rank", "eight"),
        ("adapter.alpha", "0"),
        ("adapter.dropout", "1"),
        ("adapter.targets", "[]"),
        ("adapter.targets", '""'),
        ("adapter.targets", '"(q_proj"'),
        ("adapter.targets", '"[[a]"'),  # a warning of re: a later Python reads it otherwise
        ("adapter.targets", '"a{9999999999}"'),
        ("adapter.rank", str(2**31)),
        ("train.max_steps", str(10**400)),
        ("train.num_epochs", "1e300"),
        ("data.domain", '"\\ud800"'),
        ("head.pooling", "max"),
        ("rank_sampling.rho", "1"),
        ("rank_sampling.rho", "-0.1"),
        ("rank_sampling.interval", "0"),
        ("rank_sampling.t_init", "-1"),
        ("rank_sampling.t_init", "10.5"),
        ("train.warmup", "1.5"),
        ("train.global_batch_size", "null"),
        ("train.max_steps", "1.5"),
        ("train.learning_rate", "0"),
        ("train.adam_betas", "0.9"),
        ("train.adam_betas", "[0.9]"),
        ("train.adam_betas", "[0.9, 1]"),
        ("train.eval_steps", "soon"),
        ("selection.metric", "f1"),
        ("zero.stage", "1"),
        ("zero.shard_group", "0"),
        ("checkpoint.keep_last", "0"),
    ],
)
def test_impossible_value_is_refused_with_its_field_and_line(refused, field, value):
    text = set_to(field, value)
    line = text.splitlines().index(f"  {field.split('.')[1]}: {value}") + 1
    mistakes = refused(text)
    assert set(where(mistakes)) == {f"{field} (run.yaml:{line})"}
    assert all(mistake.rule and mistake.fix for mistake in mistakes)


@pytest.mark.parametrize(
    "field", ["train.num_epochs", "train.max_steps", "adapter.rank", "rank_sampling.t_init", "zero.stage"]
)
@pytest.mark.parametrize("value", ["true", "False"])
def test_true_and_false_are_no_numbers(refused, field, value):
    assert {mistake.rule for mistake in refused(set_to(field, value))} == {"must not be true or false"}


def test_switches_take_true_and_false(load):
    text = set_to("backbone.activation_checkpointing", "true") + "selection:\n  after_final_mask: false\n"
    config = load(text)
    assert config.backbone.activation_checkpointing is True
    assert config.selection.after_final_mask is False


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize("field", ["train.learning_rate", "rank_sampling.t_init", "adapter.alpha"])
def test_numbers_are_finite(refused, field, value):
    assert set(where(refused(set_to(field, value)))) == {f"{field} (run.yaml:8)"}


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../up", "a b", "''"])
def test_name_is_one_folder_inside_runs(refused, name):
    assert where(refused(MINIMAL.replace("tata", name))) == ["name (run.yaml:1)"]


def test_target_rank_must_not_exceed_the_initial_rank(load, refused):
    (mistake,) = refused(MINIMAL, "adapter.rank=4", "rank_sampling.target_rank=5")
    assert mistake.where.startswith("rank_sampling.target_rank (") and mistake.value == 5
    assert mistake.rule == "is above adapter.rank 4"
    assert load(MINIMAL, "adapter.rank=4", "rank_sampling.target_rank=4").rank_sampling.target_rank == 4
    assert load(MINIMAL, "adapter.rank=2", "rank_sampling.mode=off").adapter.rank == 2


@pytest.mark.parametrize("method", ["lora", "none"])
@pytest.mark.parametrize(
    "field, value",
    [
        ("rank_sampling.mode", "exact"),
        ("rank_sampling.mode", "bernoulli"),
        ("rank_sampling.mode", "deterministic"),
        ("rank_sampling.mode", "reference"),
        ("rank_sampling.orthogonality", 0.1),
        ("adapter.init", "adalora"),
    ],
)
def test_sampling_penalty_and_start_are_for_svd_alone(load, refused, method, field, value):
    overrides = [f"adapter.method={method}", "rank_sampling.mode=off", f"{field}={value}"]
    (mistake,) = refused(MINIMAL, *overrides)
    assert (mistake.where, mistake.value) == (f"{field} (command line)", value)
    assert mistake.rule == f"needs adapter.method svd, not {method}"
    assert mistake.fix.startswith(f"set {field}=")
    cured = load(MINIMAL, *overrides, mistake.fix.removeprefix("set "))
    assert (cured.adapter.method, cured.rank_sampling.mode) == (method, "off")
    assert cured.rank_sampling.orthogonality == 0
    assert load(MINIMAL, *overrides, "adapter.method=svd").adapter.method == "svd"


@pytest.mark.parametrize("method", ["lora", "none"])
def test_sampling_is_on_unless_the_recipe_says_off(load, refused, method):
    """The default mode is named too, at the line of its section if there is one."""
    text = MINIMAL + f"adapter:\n  method: {method}\n"
    (mistake,) = refused(text)
    assert (mistake.where, mistake.value) == ("rank_sampling.mode (run.yaml)", "exact")
    (mistake,) = refused(text + "rank_sampling:\n  interval: 5\n")
    assert mistake.where == "rank_sampling.mode (run.yaml:8)"
    (mistake,) = refused(text + "rank_sampling:\n  interval: 5\n  mode: bernoulli\n")
    assert mistake.where == "rank_sampling.mode (run.yaml:10)"
    config = load(text + "rank_sampling: {mode: off}\n")
    assert (config.adapter.method, config.rank_sampling.mode) == (method, "off")


@pytest.mark.parametrize("method", ["lora", "none"])
def test_without_sampling_no_rank_is_too_low_for_the_target(load, method):
    config = load(MINIMAL, f"adapter.method={method}", "rank_sampling.mode=off", "adapter.rank=1")
    assert config.adapter.rank == 1 < config.rank_sampling.target_rank


def test_only_one_rhythm_of_evaluation(refused):
    (mistake,) = refused(MINIMAL, "train.eval_steps=5", "train.eval_epochs=1")
    assert mistake.where.startswith("train.eval_steps (")
    assert mistake.rule == "stands beside train.eval_epochs"


@pytest.mark.parametrize(
    "prefix",
    [
        "DNA:",
        "{sequence}{sequence}",
        "{Sequence}",
        "{}{sequence}",
        "{ }{sequence}",
        "{domain}",
        "{sequence",
        "{sequence!r}",
        "",
    ],
)
def test_template_needs_the_sequence_once_and_names_in_braces(refused, prefix):
    text = MINIMAL + f"  prefix: '{prefix}'\n  domain: yeast\n"
    (mistake,) = refused(text)
    assert mistake.where.startswith("data") and "run.yaml:" in mistake.where
    assert mistake.value == prefix and "{sequence} once" in mistake.rule


@pytest.mark.parametrize("column", ["label", "class"])
def test_template_must_not_name_the_answer(refused, load, column):
    text = MINIMAL + f"  label_column: {column}\n  prefix: 'Class: {{{column}}}, {{sequence}}'\n"
    (mistake,) = refused(text)
    assert mistake.where.startswith("data.prefix (") and "holds the answer" in mistake.rule
    assert load(text.replace(f"{{{column}}}", "{cell}")).data.prefix == "Class: {cell}, {sequence}"


@pytest.mark.parametrize("name", ["root", "hyperparameters"])
def test_what_only_a_known_task_reads_is_refused_without_one(refused, name):
    (mistake,) = refused(MINIMAL, f"data.{name}=lingo")
    assert mistake.where == f"data.{name} (command line)" and "without data.task" in mistake.rule


def test_template_with_domain_needs_the_domain(load, refused):
    text = MINIMAL + '  prefix: "Domain: {domain}\\nSequence: {sequence}\\nAnnotation:"\n'
    (mistake,) = refused(text)
    assert mistake.where.startswith("data.domain (") and mistake.fix == "set it"
    assert (
        load(text + "  domain: yeast\n").data.prefix == "Domain: {domain}\nSequence: {sequence}\nAnnotation:"
    )


@pytest.mark.parametrize(
    "settings, field, says",
    [
        (["data.dev_fraction=0.5", "data.test_fraction=0.5"], "data.test_fraction", "leave no training rows"),
        (["data.format=bed"], "data.intervals.genome", "is needed by data.format bed"),
        (["data.format=fasta", "data.intervals.genome=g.fa"], "data.intervals", "data.format fasta"),
        (["data.format=table", "data.subset=x"], "data.subset", "data.format table"),
        (["data.format=bed", "data.intervals.genome=g.fa", "data.only_task=x"], "data.only_task", "bed"),
        (["data.intervals.genome=g.fa", "data.intervals.window=9", "data.intervals.flank=1"],
         "data.intervals.flank", "stands beside data.intervals.window"),
        (["data.intervals.genome=g.fa", "data.intervals.dev_chromosomes=[c1, c2]",
          "data.intervals.test_chromosomes=[c2]"], "data.intervals.test_chromosomes", "dev_chromosomes too"),
        (["data.intervals.window=200"], "data.intervals.genome", "is required"),
        (["data.intervals.genom=g", "data.intervals.genome=g"], "data.intervals.genom", "is not a known"),
    ],
)  # fmt: skip
def test_settings_of_data_that_contradict_are_refused(refused, settings, field, says):
    (mistake,) = refused(MINIMAL, *settings)
    assert mistake.where == f"{field} (command line)" or mistake.where == f"{field} (run.yaml:4)"
    assert says in mistake.rule and mistake.fix


def test_one_or_several_label_columns(load):
    assert load().data.label_columns == ("label",)
    assert load(MINIMAL, "task.kind=multilabel", "data.label_column=[a, b]").data.label_columns == ("a", "b")


# -- the file


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
            load_config(path)
        (mistake,) = caught.value.mistakes
        assert mistake.rule == rule and str(path) in str(mistake)


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


def test_what_is_no_recipe_is_not_read_to_an_end_that_may_never_come(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        load_config(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="not a regular file"):
        load_config(Path("/dev/zero"))
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


# -- the command line


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


# -- what is written down again


def test_written_config_reads_back_equal(load, tmp_path):
    text = """\
name: "123"
seed: 9223372036854775807
output_dir: runs/elsewhere
backbone: {path: some/model, revision: "1e5", dtype: bf16, trust_remote_code: true}
data: {path: here, prefix: "Domain: {domain}\\n\\t{sequence}:", domain: "no", cache_dir: /tmp/cache}
adapter: {targets: [q_proj, "null"], alpha: 3, dropout: 0.1}
rank_sampling: {t_init: 10, t_final: 0.25, rho_final: 0.001, orthogonality: 1.0e-7}
train: {learning_rate: 1.0e-5, adam_eps: 1.0e-9, max_grad_norm: null, adam_betas: [0.8, 0.95]}
zero: {stage: 3, shard_group: 2}
checkpoint: {every: 6, resume: never}
"""
    others = [load(MINIMAL, f"adapter.method={name}", "rank_sampling.mode=off") for name in ("lora", "none")]
    for config in (load(), load(text), *others):
        written = tmp_path / "written.yaml"
        written.write_text(config.to_yaml(), encoding="utf-8")
        assert load_config(written) == config


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
    assert load_config(written) == config


def test_written_config_says_every_setting(load):
    written = yaml.safe_load(load().to_yaml())
    assert set(written) == set(RunConfig.model_fields)
    assert written["rank_sampling"]["rho"] == 0.1 and written["train"]["max_steps"] is None


def test_a_run_writes_into_runs_unless_told(load):
    assert load().run_dir == Path("runs/tata")
    assert load(MINIMAL, "output_dir=/data/out").run_dir == Path("/data/out")


# -- what is shipped


@pytest.mark.parametrize("name", list_resources("recipes"))
def test_every_recipe_loads_and_its_head_says_how_to_run_it(name):
    path = resource_path("recipes", name)
    runs = load_runs(path)
    assert (
        runs.config if isinstance(runs, Suite) else runs
    ).name == name  # so that runs/NAME is the recipe's
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--config recipes/{name}.yaml" in line for line in head)


def sections(model: type[Section] = RunConfig) -> list[type[Section]]:
    """The section and all below it."""
    inner = [field.annotation for field in model.model_fields.values()]
    below = [a for hint in inner for a in (hint, *get_args(hint)) if isinstance(a, type)]
    return [model, *(s for a in below if issubclass(a, Section) for s in sections(a))]


def test_every_setting_is_described():
    assert len(sections()) > 8
    bare = [
        f"{section.__name__}.{name}"
        for section in sections()
        for name, field in section.model_fields.items()
        if not field.description and field.annotation not in sections()
    ]
    assert bare == []
    assert all(section.__doc__ for section in sections())
