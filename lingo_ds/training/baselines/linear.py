"""Linear models of one-hot bases by scikit-learn: logistic regression, and ridge regression of values."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lingo_ds.data.labels import VALUE_KINDS
from lingo_ds.training.baselines.fitting import Fitted, Point, Problem

ITERATIONS = 1000
"""Of L-BFGS at most."""

LEAST_PROBABILITY = 1e-30
"""Of a class: that of one that the rows lack, and below which a logarithm would no longer be finite."""


def fit_linear(problem: Problem, point: Point) -> Fitted:
    """Fits what the kind of task needs; nothing is drawn, so that there is no seed.

    Classes: one multinomial logistic regression by L-BFGS. Labels: one logistic regression each, on the rows
    that know it. Values: ridge regression of each, likewise. The intercept is not penalised.
    """
    features, targets = problem.train.bases.flatten(1).numpy(), problem.targets()
    begin = time.perf_counter()
    if problem.task.kind in VALUE_KINDS:
        model: _Model = _fit_each(features, targets, point.l2, kind=problem.task.kind)
    else:
        model = _fit_classes(features, targets, point.l2, classes=problem.task.classes)
    return Fitted(
        logits=model.logits,
        parameters=model.parameters,
        steps=model.steps,
        selected_step=model.steps,
        examples=model.steps * len(targets),
        seconds=time.perf_counter() - begin,
    )


class _Classes(NamedTuple):
    """A multinomial model of the classes that its rows had."""

    model: Any
    classes: int
    steps: int

    def logits(self, bases: Tensor) -> np.ndarray:
        found = np.full((len(bases), self.classes), np.log(LEAST_PROBABILITY))
        found[:, self.model.classes_] = self.model.predict_log_proba(bases.flatten(1).numpy())
        return np.maximum(found, np.log(LEAST_PROBABILITY))

    @property
    def parameters(self) -> int:
        return int(self.model.coef_.size + self.model.intercept_.size)


class _Outputs(NamedTuple):
    """Linear functions: weights (outputs, features) and biases (outputs,)."""

    weights: np.ndarray
    biases: np.ndarray
    steps: int

    def logits(self, bases: Tensor) -> np.ndarray:
        found: np.ndarray = bases.flatten(1).numpy() @ self.weights.T + self.biases
        return found

    @property
    def parameters(self) -> int:
        return self.weights.size + self.biases.size


_Model = _Classes | _Outputs


def _fit_classes(features: np.ndarray, labels: np.ndarray, l2: float, *, classes: int) -> _Classes:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / l2, max_iter=ITERATIONS)
    model.fit(features, labels)
    return _Classes(model, classes, int(model.n_iter_.max()))


def _fit_each(features: np.ndarray, targets: np.ndarray, l2: float, *, kind: str) -> _Outputs:
    """One model per label or value, on the rows (NaN: unknown) that know it."""
    fit = _fit_label if kind == "multilabel" else _fit_value
    found = []
    for column in targets.T:
        known = ~np.isnan(column)
        every = bool(known.all())
        found.append(fit(features if every else features[known], column[known], l2))
    return _stacked(found)


class _Output(NamedTuple):
    weights: np.ndarray
    bias: float
    steps: int


def _fit_label(features: np.ndarray, truth: np.ndarray, l2: float) -> _Output:
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(truth)) < 2:  # its share is all that can be known; one half of a row is added to each
        positives, rows = float(truth.sum()), len(truth)
        odds = (positives + 0.5) / (rows - positives + 0.5)
        return _Output(np.zeros(features.shape[1]), float(np.log(odds)), 0)
    model = LogisticRegression(C=1 / l2, max_iter=ITERATIONS).fit(features, truth)
    return _Output(model.coef_[0], float(model.intercept_[0]), int(model.n_iter_.max()))


def _fit_value(features: np.ndarray, values: np.ndarray, l2: float) -> _Output:
    from sklearn.linear_model import Ridge

    if not len(values):  # no row that was drawn knows it: the mean of all training rows, which is 0
        return _Output(np.zeros(features.shape[1]), 0.0, 0)
    model = Ridge(alpha=l2).fit(features, values)
    return _Output(model.coef_, float(model.intercept_), 1)


def _stacked(outputs: Sequence[_Output]) -> _Outputs:
    return _Outputs(
        np.stack([one.weights for one in outputs]),
        np.array([one.bias for one in outputs]),
        max(one.steps for one in outputs),
    )
