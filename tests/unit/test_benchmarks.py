"""The comparison of methods: every method can run at every length offered, and its statistics are right."""

import sys

import numpy as np
import pytest
from scipy import stats

from benchmarks import methods
from lingo_ds.config import RunConfig
from lingo_ds.plan import make_plan
from tests.unit.test_plan import SMALL


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
        key(seed=1), key(method="bernoulli"), key("--steps", "900"), key("--set", "rank_sampling.interval=7"),
        key("--set", "data.max_length=30"), key("--set", "backbone.dtype=bf16"),
    ]  # fmt: skip
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
    assert methods._paired(ours, theirs) == f"+0.100 [{low:+.3f}, {high:+.3f}]"
    assert methods._paired(ours, ours) == "+0.000"


def test_spread_is_that_of_seeds_not_of_data_sets():
    values = {
        ("b", data, seed): base + seed * 0.1 for data, base in (("x", 0.1), ("y", 0.7)) for seed in range(3)
    }
    assert methods._seed_spread(values) == pytest.approx(np.std([0, 0.1, 0.2], ddof=1))
    assert methods._seed_spread({("b", "x", 0): 0.5}) is None
