"""Benchmarks: what they compare can run and is the same work, and their statistics are right."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks import (
    _cpu_machine,
    _paired_runs,
    _plan_runs,
    _rival,
    _training_runs,
    _workloads,
    methods,
    plan_accuracy,
    prompts,
    train_throughput,
)
from benchmarks._training_runs import Measured
from benchmarks._workloads import COOLDOWN, WARMUP, WORKLOADS, Work
from lingo_ds.config.known_tasks import registry
from lingo_ds.config.run_config import RunConfig
from lingo_ds.data.batches import epoch_order
from lingo_ds.distributed import process_group
from lingo_ds.models.backbone.tokenizer import read_tokenizer
from lingo_ds.planning.plan import make_plan
from lingo_ds.training.lr_schedule import learning_rate_factor
from lingo_ds.training.setup import prepare
from lingo_ds.utils.units import GIB
from tests.unit.planning.facts import SMALL


def arguments(monkeypatch: pytest.MonkeyPatch, *given: str):
    monkeypatch.setattr(sys, "argv", ["methods", *given])
    return methods._arguments()


@pytest.mark.parametrize("given", [("--quick",), ()], ids=["quick", "full"])
@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_has_a_plan(monkeypatch, method, given):
    args = arguments(monkeypatch, *given, "--methods", method)
    assert args.methods == [method]
    run = methods._run(args, "builtin:tiny", "builtin:promoters", method, args.rates[0], 0)
    plan = make_plan(RunConfig(**run.config), SMALL)
    assert plan.schedule is None or plan.schedule.mask_steps()
    final = plan.schedule.target if plan.schedule else plan.facts.sites * run.config["adapter"].get("rank", 0)
    assert method == "head only" or final == plan.facts.sites * methods.TARGET


def test_a_run_is_known_by_all_that_decides_it(monkeypatch):
    def key(*given: str, seed: int = 0, method: str = "exact") -> str:
        args = arguments(monkeypatch, *given)
        return methods._run(args, "builtin:tiny", "builtin:promoters", method, 1e-3, seed).key

    default = RunConfig.model_fields["rank_sampling"].default.interval
    assert key() == key("--set", f"rank_sampling.interval={default}")
    others = [
        key(seed=1),
        key(method="bernoulli"),
        key("--steps", "900"),
        key("--set", "rank_sampling.interval=7"),
        key("--set", "data.max_length=30"),
        key("--set", "backbone.dtype=bf16"),
    ]
    assert len({key(), *others}) == 7


@pytest.mark.parametrize(
    "given", [("--sets", "tata"), ("--set", "rank_sampling.interval"), ("--backbones", "a/x", "b/x")]
)
def test_wrong_arguments_end_with_status_2(monkeypatch, capsys, given):
    with pytest.raises(SystemExit) as ended:
        arguments(monkeypatch, *given)
    assert ended.value.code == 2
    assert given[0] in capsys.readouterr().err


def test_paired_difference_is_students():
    ours = {("b", "d", seed): value for seed, value in enumerate((0.8, 0.7, 0.9))}
    theirs = {("b", "d", seed): value for seed, value in enumerate((0.7, 0.7, 0.7))}
    low, high = stats.ttest_rel(list(ours.values()), list(theirs.values())).confidence_interval(0.95)
    assert _paired_runs.paired(ours, theirs) == f"+0.100 [{low:+.3f}, {high:+.3f}]"
    assert _paired_runs.paired(ours, ours) == "+0.000"


def test_spread_is_that_of_seeds_not_of_data_sets():
    values = {
        ("b", data, seed): base + seed * 0.1 for data, base in (("x", 0.1), ("y", 0.7)) for seed in range(3)
    }
    assert _paired_runs.seed_spread(values) == pytest.approx(np.std([0, 0.1, 0.2], ddof=1))
    assert _paired_runs.seed_spread({("b", "x", 0): 0.5}) is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return _workloads.make_backbone("tiny", tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="module")
def mixture(tiny, tmp_path_factory) -> Work:
    return _workloads.prepare(
        WORKLOADS["c"], tiny, tmp_path_factory.mktemp("work"), batch=4, steps=5, learning_rate=1e-3
    )


@pytest.fixture
def setup(mixture, tmp_path, monkeypatch):
    """What our own code makes of the workload."""
    monkeypatch.setenv("LINGO_DS_CACHE", str(tmp_path / "cache"))
    config = _training_runs.our_config(mixture, tmp_path, dtype="fp32", stage="auto", adapter={})
    return prepare(config, process_group.detect())


def test_rival_gets_our_examples_in_our_order(mixture, setup):
    rows, split = json.loads(mixture.rows.read_text()), setup.data.splits["train"]
    assert setup.plan.steps == setup.plan.steps_per_epoch == mixture.all_steps
    order = epoch_order(len(split), seed=setup.config.seed, epoch=0)
    assert [row["input_ids"] for row in rows] == [split.tokens(row).tolist() for row in order]
    assert [row["labels"] for row in rows] == split.labels[order].tolist()
    assert mixture.tokens == pytest.approx(split.lengths.mean())


def test_rival_learns_at_our_rates(mixture, setup):
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=mixture.learning_rate)
    schedule = _rival.schedule(optimizer, warmup=WARMUP, steps=mixture.all_steps)
    rates = []
    for _ in range(mixture.all_steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    config, plan = setup.config.train, setup.plan
    ours = [
        learning_rate_factor(step, steps=plan.steps, warmup_steps=plan.warmup_steps, decay=config.lr_schedule)
        for step in range(1, plan.steps + 1)
    ]
    assert rates == pytest.approx([config.learning_rate * factor for factor in ours])


@pytest.mark.slow
def test_rival_alone_does_the_same_work_without_deepspeed(mixture, tmp_path):
    """As on one GPU; here on the CPU."""
    how = {"dtype": "fp32", "processes": 1, "grouped": False, "device": "cpu"}
    settings = _training_runs.rival_settings(mixture, **how)
    runs = {}
    for deepspeed in (True, False):
        folder = tmp_path / str(deepspeed)
        folder.mkdir()
        runs[str(deepspeed)] = [_training_runs.rival_job(settings | {"deepspeed": deepspeed}, folder, 1)]
    train_throughput.require_same_work(runs)
    (under,), (alone,) = runs.values()
    assert alone.losses == pytest.approx(under.losses, rel=1e-3)
    assert (under.held, alone.held) == (1.0, 1.0) and alone.peak_device_bytes is None


def test_mixture_has_equal_shares_of_each_length(mixture):
    lengths = [len(row["input_ids"]) for row in json.loads(mixture.rows.read_text())]
    counts = Counter(length - min(lengths) for length in lengths)
    assert set(counts) == {0, 31, 230, 430}
    assert max(counts.values()) - min(counts.values()) <= len(lengths) % 4
    assert lengths != sorted(lengths)


@pytest.mark.parametrize(
    ("context", "what"),
    [(400, "70 101 300 bp, short prefix; 500 bp beyond the context"), (110, None)],
)
def test_what_is_beyond_the_context_is_left_out_and_said(tmp_path, context, what):
    backbone = _workloads.make_backbone("tiny", tmp_path / "tiny")
    config = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
    work = _workloads.prepare(
        WORKLOADS["c"], backbone, tmp_path / "work", batch=4, steps=2, learning_rate=1e-3
    )
    assert (work and work.what) == what
    if work:
        assert max(len(row["input_ids"]) for row in json.loads(work.rows.read_text())) <= context


def test_description_is_about_100_tokens(tiny):
    tokenizer = read_tokenizer(tiny)
    before, after = WORKLOADS["b"].prefix(tokenizer).split("{sequence}")
    assert 100 <= len(tokenizer(before.partition("\n")[0])["input_ids"]) < 115
    assert after == "\nAnnotation:"


@pytest.mark.parametrize("grouped", [False, True], ids=["padded", "grouped"])
def test_grouping_moves_timed_rows_only(grouped):
    lengths = [int(length) for length in np.random.default_rng(0).integers(1, 100, 48)]
    settings = {"timed_rows": [12, 44], "grouped": grouped, "seed": 0, "batch": 2}
    order = _rival.order_of_rows(settings, lengths)
    assert sorted(order) == list(range(48))
    assert order[:12] + order[44:] == [*range(12), *range(44, 48)]
    timed = np.array(lengths)[order[12:44]].reshape(-1, 2)
    padding = (timed.max(1, keepdims=True) - timed).sum() / timed.sum()
    assert padding < 0.05 if grouped else padding > 0.2


def measured(seconds: float, *, loss: float = 0.5, **other) -> Measured:
    """A run of 8 timed steps, each so long; warm-up and last step are slow."""
    pauses = [9.0] * WARMUP + [seconds] * 8 + [9.0] * COOLDOWN
    given = {"rates": [1e-3] * len(pauses), "trainable": 10, "peak_host_bytes": GIB, "held": 1.0, **other}
    return Measured(stamps=np.cumsum(pauses).tolist(), losses=[loss] * len(pauses), **given)


def test_only_timed_steps_count():
    assert measured(0.25).step_seconds == pytest.approx(0.25)


def test_ratio_is_to_the_best_rival_by_medians(mixture):
    runs = {
        "ours, auto": [measured(0.1), measured(0.1), measured(7.0)],
        "ours, stage 3": [measured(0.4)],
        "rival, padded": [measured(0.3, loss=0.7)],
        "rival, grouped": [measured(0.2)],
    }
    auto, sharded = train_throughput.compare(mixture, runs)
    assert (auto["ours"], auto["rival"]) == (pytest.approx(40), pytest.approx(20))
    assert (auto["ratio"], sharded["ratio"]) == (pytest.approx(2), pytest.approx(0.5))
    assert auto["over rival, padded"] == pytest.approx(3)
    rows = train_throughput.describe(mixture, runs)
    assert [row["loss apart"] for row in rows] == [0, 0, pytest.approx(0.2), None]
    assert rows[0]["slowest"] == pytest.approx(4 / 7)


def test_last_quarter_of_the_steps():
    assert train_throughput.last_quarter([9, 9, 9, 9, 9, 9, 1, 2]) == 1.5
    assert train_throughput.last_quarter([3]) == 3


@pytest.mark.parametrize("other", [{"trainable": 11}, {"rates": [2e-3] * 12}], ids=["size", "rates"])
def test_other_work_is_no_comparison(other):
    train_throughput.require_same_work({"ours": [measured(1.0)], "rival": [measured(2.0)]})
    with pytest.raises(AssertionError, match="rival does other work"):
        train_throughput.require_same_work({"ours": [measured(1.0)], "rival": [measured(2.0, **other)]})


def test_a_job_that_fails_says_how(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no such luck')")
    with pytest.raises(RuntimeError, match=r"status 1:\n.*no such luck"):
        _training_runs.launch([str(script)], tmp_path, 1)


def test_a_job_that_hangs_is_ended(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import time; time.sleep(60)")
    with pytest.raises(RuntimeError, match="none within 1 s"):
        _training_runs.launch([str(script)], tmp_path, 1, timeout=1)


def throughput_arguments(monkeypatch: pytest.MonkeyPatch, *given: str):
    monkeypatch.setattr(sys, "argv", ["train_throughput", *given])
    return train_throughput._arguments()


def test_throughput_arguments(monkeypatch):
    quick, full = (throughput_arguments(monkeypatch, *given) for given in (("--quick",), ()))
    assert (quick.backbones, quick.workloads, quick.repeats) == (["tiny"], ["c"], 1)
    assert (full.backbones, full.workloads, full.repeats) == (["llama-50m"], ["a", "b", "c"], 3)


@pytest.mark.parametrize("given", [("--backbones", "nowhere"), ("--batch", "5")])
def test_wrong_throughput_arguments_end_with_status_2(monkeypatch, capsys, given):
    with pytest.raises(SystemExit) as ended:
        throughput_arguments(monkeypatch, *given)
    assert ended.value.code == 2
    assert " ".join(given) in capsys.readouterr().err


# -- prompts


def prompt_run(
    monkeypatch: pytest.MonkeyPatch, template: str, *given: str, seed: int = 0
) -> _paired_runs.Run:
    monkeypatch.setattr(sys, "argv", ["prompts", *given])
    return prompts.make_run(prompts._arguments(), "builtin:tiny", "builtin:promoters", template, seed)


def test_templates_differ_by_nothing_but_the_text(monkeypatch):
    configs = {name: RunConfig(**prompt_run(monkeypatch, name).config) for name in registry().templates}
    texts = {name: config.data.prefix for name, config in configs.items()}
    assert texts["none"] is None and texts["published"].startswith("Domain: {domain}")
    assert texts["rich"].startswith("Organism: Homo sapiens") and "{question}" not in texts["rich"]
    same = {config.model_copy(update={"data": None}) for config in configs.values()}
    assert len(same) == 1
    assert len({config.data.model_copy(update={"prefix": None}) for config in configs.values()}) == 1


def test_the_table_of_templates_has_mean_spread_and_paired_differences(monkeypatch):
    runs = [prompt_run(monkeypatch, name, seed=seed) for name in ("none", "rich") for seed in range(3)]
    dev, test = [0.1, 0.2, 0.3, 0.5, 0.6, 0.7], [0.0, 0.1, 0.2, 0.3, 0.4, 0.8]
    done = {run.key: {"dev": d, "test": {"mcc": t}} for run, d, t in zip(runs, dev, test, strict=True)}
    assert len(done) == 6
    none, rich = prompts.summarize(runs, done)
    assert (none["template"], rich["template"], rich["seeds"]) == ("none", "rich", 3)
    assert (none["dev MCC"], rich["test MCC"]) == pytest.approx((0.2, 0.5))
    assert (rich["dev sd"], none["test sd"]) == pytest.approx((0.1, 0.1))
    half = stats.t.ppf(0.975, 2) * stats.sem([0.3, 0.3, 0.6])
    assert rich["test - none [95 %]"] == f"+0.400 [{0.4 - half:+.3f}, {0.4 + half:+.3f}]"


def test_known_tasks_need_their_folder(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        prompt_run(monkeypatch, "rich", "--sets", "tf_0")
    assert ended.value.code == 2 and "--gue" in capsys.readouterr().err


# -- the plan beside training


def test_the_grid_has_every_kind_of_job():
    names = [setting.name for setting in plan_accuracy.GRID]
    assert len(set(names)) == len(names) >= 12
    assert {setting.processes for setting in plan_accuracy.GRID} == {1, 2, 4}
    assert {setting.link for setting in plan_accuracy.GRID} == {None, "100mbit", "1gbit"}


def test_what_is_off_is_off_by_what_was_measured():
    planned = SimpleNamespace(peak_bytes=110, compute=1.0, exposed=0.5, update=0.0, seconds=1.5)
    row = plan_accuracy.compare(
        plan_accuracy.QUICK[0], {"peak_host_bytes": 100, "step_seconds": 2.0}, planned
    )
    assert (row["peak off"], row["step off"]) == (pytest.approx(0.1), pytest.approx(-0.25))


def test_the_cpu_is_planned_with_what_was_probed(tmp_path):
    rates = {
        "processes": 2,
        "widths": [256, 512],
        "products": [1e11, 2e11],
        "adapters": [1e10, 1e10],
        "attention": 1e10,
        "memory": 1e10,
        "dispatch": 1e-6,
        "all_gather": [1e-4, 1e8],
    }
    setting = _plan_runs.Setting("tiny", processes=2, stage=3, batch=4, length=100, link="100mbit")
    work = _plan_runs.make_work(
        setting, _plan_runs.make_shape("tiny", tmp_path / "tiny"), tmp_path / "w", steps=1
    )
    fast, slow = (
        _cpu_machine.predicted(one, work, rates, 10**8, tmp_path)
        for one in (setting._replace(link="1gbit"), setting)
    )
    assert slow.seconds > fast.seconds and slow.compute == fast.compute
    assert slow.memory["runtime"] == 10**8
    faster = rates | {"products": [1e12, 2e12]}
    assert _cpu_machine.predicted(setting, work, faster, 10**8, tmp_path).compute < slow.compute
