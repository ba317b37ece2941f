"""Every setting refuses what it cannot be, and what contradicts another."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from lingo_ds.config.fields import Section
from lingo_ds.config.run_config import RunConfig
from lingo_ds.config.suite_config import load_runs
from tests.unit.config.recipes import MINIMAL, set_to, where


@pytest.mark.parametrize(
    "field, value",
    [
        ("backbone.path", "[5]"),
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
    assert mistake.rule == "cannot be combined with train.eval_epochs"


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
        assert load_runs(written) == config


def test_written_config_says_every_setting(load):
    written = yaml.safe_load(load().to_yaml())
    assert set(written) == set(RunConfig.model_fields)
    assert written["rank_sampling"]["rho"] == 0.1 and written["train"]["max_steps"] is None


def test_a_run_writes_into_runs_unless_told(load):
    assert load().run_dir == Path("runs/tata")
    assert load(MINIMAL, "output_dir=/data/out").run_dir == Path("/data/out")


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
