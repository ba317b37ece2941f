"""Intervals of metrics are those that recomputing each metric on each resample gives."""

import numpy as np
import pytest

from lingo_ds.evaluation import bootstrap as bootstrap_module
from lingo_ds.evaluation import metrics as metrics_module
from lingo_ds.evaluation.bootstrap import bootstrap
from lingo_ds.evaluation.metrics import (
    Metrics,
    _softmax,
    classification_metrics,
    multilabel_metrics,
    regression_metrics,
)

ROWS, RESAMPLES = 40, 120


def drawn(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Answers and labels with ties among them, a fifth of the labels and values unknown."""
    draw = np.random.default_rng(3)
    outputs = {"binary": 2, "multiclass": 3}.get(kind, 2)
    logits = draw.normal(size=(ROWS, outputs)).round(1)
    if kind == "binary" or kind == "multiclass":
        return _softmax(logits), (logits + draw.normal(size=logits.shape)).argmax(1)
    values = (logits + draw.normal(size=logits.shape)).round(1)
    hidden = draw.random(values.shape) < 0.2
    if kind == "regression":
        return logits, np.where(hidden, np.nan, values)
    return 1 / (1 + np.exp(-logits)), np.where(hidden, np.nan, values > 0)


def by_definition(kind: str, answers: np.ndarray, labels: np.ndarray, threshold: float | None) -> Metrics:
    if kind == "regression":
        return regression_metrics(answers, labels, names=["a", "b"]).overall
    if kind == "multilabel":
        thresholds = [threshold] * 2 if threshold else 0.5
        return multilabel_metrics(answers, labels, thresholds=thresholds, names=["a", "b"]).overall
    with pytest.MonkeyPatch.context() as patch:  # of logarithms, equal ones would become unequal
        patch.setattr(metrics_module, "_softmax", lambda probabilities: probabilities)
        return classification_metrics(answers, labels, threshold=threshold)


@pytest.mark.parametrize(
    ("kind", "threshold"),
    [
        ("binary", None),
        ("binary", 0.4),
        ("multiclass", None),
        ("multilabel", None),
        ("multilabel", 0.3),
        ("regression", None),
    ],
)
def test_intervals_are_quantiles_of_the_metric_on_each_resample(kind, threshold, monkeypatch):
    monkeypatch.setattr(bootstrap_module, "RESAMPLES", RESAMPLES)
    monkeypatch.setattr(bootstrap_module, "WORK_AT_ONCE", 50 * ROWS)  # in three parts
    answers, labels = drawn(kind)
    thresholds = None if threshold is None else (threshold,) * (2 if kind == "multilabel" else 1)
    found = bootstrap(answers, labels, kind=kind, thresholds=thresholds, seed=5)
    draw = np.random.default_rng(5)
    rows = np.concatenate([draw.integers(ROWS, size=(n, ROWS), dtype=np.int32) for n in (50, 50, 20)])
    each = [by_definition(kind, answers[row], labels[row], threshold) for row in rows]
    assert found.resamples == RESAMPLES
    assert set(found.by_metric) == set(each[0]) - {"labels_left_out"}
    for name, interval in found.by_metric.items():
        expected = np.quantile([one[name] for one in each if one[name] is not None], [0.025, 0.975])
        assert interval == pytest.approx(tuple(expected), abs=1e-9), name


def test_a_metric_that_is_not_defined_has_no_interval():
    answers, labels = drawn("binary")
    found = bootstrap(answers, np.ones_like(labels), kind="binary", thresholds=None).by_metric
    assert "auroc" not in found and "auprc" not in found and found["mcc"] == (0.0, 0.0)
    labels = np.full((ROWS, 2), np.nan)
    assert not bootstrap(answers, labels, kind="regression", thresholds=None).by_metric


def test_a_split_that_is_too_large_has_fewer_resamples_or_none(monkeypatch):
    answers, labels = drawn("binary")
    monkeypatch.setattr(bootstrap_module, "MAX_WORK", 150 * answers.size)
    assert bootstrap(answers, labels, kind="binary", thresholds=None).resamples == 150
    monkeypatch.setattr(bootstrap_module, "MAX_WORK", 99 * answers.size)
    assert bootstrap(answers, labels, kind="binary", thresholds=None) == ({}, 0)
