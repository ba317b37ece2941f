"""Points of curves against scikit-learn, with ties among the probabilities."""

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics

from lingo_ds.evaluation.curves import (
    calibration,
    calibration_error,
    confusion,
    roc_and_precision_recall,
)

DRAW = np.random.default_rng(0)
P = DRAW.random(300).round(2)
TRUTH = DRAW.random(300) < P


def test_curves_are_those_of_sklearn():
    roc, pr = roc_and_precision_recall(P, TRUTH)
    fpr, tpr, _ = sklearn.metrics.roc_curve(TRUTH, P, drop_intermediate=False)
    assert np.allclose([roc.false_positive_rate, roc.true_positive_rate], [fpr, tpr])
    assert roc.area == pytest.approx(sklearn.metrics.roc_auc_score(TRUTH, P))
    precision, recall, _ = sklearn.metrics.precision_recall_curve(TRUTH, P)
    assert np.allclose([pr.recall, pr.precision], [recall[-2::-1], precision[-2::-1]])
    assert pr.area == pytest.approx(sklearn.metrics.average_precision_score(TRUTH, P))
    assert pr.share_of_positives == TRUTH.mean()


def test_one_class_has_no_curves():
    assert roc_and_precision_recall(P, np.ones(300, bool)) is None
    assert roc_and_precision_recall(np.zeros(0), np.zeros(0, bool)) is None


def test_calibration_is_that_of_sklearn_and_counts_every_answer():
    p = np.clip(P, 0.01, 0.98) + 0.003  # off the edges, which sklearn counts to the bin below
    bins = calibration(p, TRUTH)
    frequency, probability = sklearn.calibration.calibration_curve(TRUTH, p, n_bins=10)
    assert np.allclose([one.frequency for one in bins], frequency)
    assert np.allclose([one.probability for one in bins], probability)
    assert sum(one.size for one in bins) == 300
    assert all(one.low <= one.frequency <= one.high for one in bins)
    expected = np.average(np.abs(frequency - probability), weights=[one.size for one in bins])
    assert calibration_error(bins) == pytest.approx(expected)
    assert [one.size for one in calibration(np.ones(4), np.ones(4, bool))] == [4]


def test_confusion_has_the_truth_in_rows():
    labels, decided = DRAW.integers(3, size=50), DRAW.integers(3, size=50)
    expected = sklearn.metrics.confusion_matrix(labels, decided)
    assert (confusion(decided, labels, classes=3) == expected).all()
