"""Metrics against numbers worked out by hand, and at the edges where they are undefined."""

import numpy as np
import pytest

from lingo_ds.evaluation.metrics import classification_metrics

pytestmark = pytest.mark.filterwarnings("error")


def logits_of(probabilities: list[float]) -> np.ndarray:
    """Two-class logits (n, 2) with the given probabilities of class 1."""
    p = np.array(probabilities)
    return np.stack([np.log(1 - p), np.log(p)], axis=1)


def test_binary_by_hand():
    # Predictions 1 1 0 1 0 0 against 1 1 1 0 0 0: tp 2, fn 1, fp 1, tn 2.
    scores = classification_metrics(logits_of([0.9, 0.8, 0.3, 0.6, 0.2, 0.1]), np.array([1, 1, 1, 0, 0, 0]))
    assert scores == pytest.approx(
        {
            "accuracy": 4 / 6,
            "macro_f1": 2 / 3,
            "mcc": (2 * 2 - 1 * 1) / np.sqrt(3 * 3 * 3 * 3),
            "macro_precision": 2 / 3,
            "macro_recall": 2 / 3,
            "auroc": 8 / 9,  # of 9 pairs only (0.3, 0.6) is the wrong way round
            "auprc": (1 + 1 + 3 / 4) / 3,  # precision where recall grows: ranks 1, 2, 4
            "brier": (0.01 + 0.04 + 0.49 + 0.36 + 0.04 + 0.01) / 6,
        }
    )


def test_uneven_errors_separate_precision_from_recall():
    # Predictions 1 1 1 0 against 1 0 0 0. Class 0: precision 1, recall 1/3; class 1: precision 1/3, recall 1.
    scores = classification_metrics(logits_of([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 0, 0]))
    assert scores["macro_precision"] == pytest.approx(2 / 3)
    assert scores["macro_recall"] == pytest.approx(2 / 3)
    assert scores["macro_f1"] == pytest.approx(0.5)
    assert scores["mcc"] == pytest.approx((1 * 1 - 2 * 0) / np.sqrt(3 * 1 * 3 * 1))


def test_class_one_is_the_positive_class():
    logits, labels = logits_of([0.9, 0.4, 0.6, 0.2, 0.3]), np.array([1, 1, 0, 0, 0])
    assert classification_metrics(logits, labels)["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert classification_metrics(logits[:, ::-1], 1 - labels)["auprc"] == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_perfect_and_reversed():
    logits, labels = np.array([[9.0, -9], [9, -9], [-9, 9], [-9, 9]]), np.array([0, 0, 1, 1])
    perfect, wrong = classification_metrics(logits, labels), classification_metrics(logits, 1 - labels)
    for key in ("accuracy", "macro_f1", "mcc", "macro_precision", "macro_recall", "auroc", "auprc"):
        assert perfect[key] == pytest.approx(1), key
    assert (perfect["brier"], wrong["brier"]) == pytest.approx((0, 1), abs=1e-6)
    assert (wrong["accuracy"], wrong["mcc"], wrong["auroc"]) == pytest.approx((0, -1, 0))


def test_constant_prediction():
    scores = classification_metrics(np.tile([0.0, 1.0], (4, 1)), np.array([0, 0, 0, 1]))
    assert (scores["accuracy"], scores["mcc"], scores["auroc"]) == pytest.approx((0.25, 0, 0.5))
    assert scores["macro_f1"] == pytest.approx(0.4 / 2)  # class 1: precision 1/4, recall 1


@pytest.mark.parametrize("predicted", [0, 1])
def test_one_class_only_in_the_labels(predicted):
    logits = logits_of([0.2, 0.3] if predicted == 0 else [0.8, 0.7])
    scores = classification_metrics(logits, np.array([1, 1]))
    assert scores["accuracy"] == predicted
    assert scores["mcc"] == 0
    assert scores["auroc"] is None
    assert scores["auprc"] is None


def test_three_classes_by_hand():
    # Predictions 0 1 1 2 against 0 0 1 2.
    p = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    scores = classification_metrics(np.log(p), np.array([0, 0, 1, 2]))
    assert scores == pytest.approx(
        {
            "accuracy": 3 / 4,
            "macro_f1": (2 / 3 + 2 / 3 + 1) / 3,
            "macro_precision": (1 + 1 / 2 + 1) / 3,
            "macro_recall": (1 / 2 + 1 + 1) / 3,
            # Gorodkin's R_K, with 3 of 4 right, predicted counts p = 1 2 1 and true counts t = 2 1 1:
            # (3 * 4 - sum p t) / sqrt((4^2 - sum p^2) (4^2 - sum t^2))
            "mcc": (3 * 4 - 5) / np.sqrt((16 - 6) * (16 - 6)),
            "auroc": 1.0,
            "auprc": 1.0,
            "brier": (0.14 + 0.86 + 0.06 + 0.24) / 4,
        }
    )


def test_three_classes_ranking_is_the_mean_over_one_vs_rest():
    p = np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    # Class 0 (row 0): beaten by row 1. Class 1 (row 1): tied with row 0. Class 2 (row 2): first.
    scores = classification_metrics(np.log(p), np.array([0, 1, 2]))
    assert scores["auroc"] == pytest.approx((1 / 2 + 3 / 4 + 1) / 3)
    assert scores["auprc"] == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


def test_an_absent_class_leaves_ranking_undefined():
    scores = classification_metrics(np.eye(3)[[0, 1, 1]], np.array([0, 1, 1]))
    assert scores["accuracy"] == 1
    assert (scores["auroc"], scores["auprc"]) == (None, None)


def test_large_logits_and_half_precision():
    scores = classification_metrics(np.array([[0, 60000], [60000, 0]], dtype=np.float16), np.array([1, 0]))
    assert (scores["accuracy"], scores["brier"]) == (1, 0)


def test_order_of_examples_does_not_matter():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(60, 4)), generator.integers(0, 4, 60)
    order = generator.permutation(60)
    shuffled = classification_metrics(logits[order], labels[order])
    assert classification_metrics(logits, labels) == pytest.approx(shuffled)


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        ([[0.0, 1.0], [np.nan, 0.0]], [0, 1], "1 of 2 examples are not finite, first in row 1"),
        ([[np.inf, 1.0]], [0], "not finite"),
        ([[0.0, 1.0]], [2], "label 2 in row 0 is not one of 0 to 1"),
        ([[0.0, 1.0]], [-1], "label -1"),
        ([[0.0, 1.0]], [0, 1], r"labels have shape \(2,\)"),
        ([[0.0, 1.0]], [0.0], "dtype float64"),
        ([0.0, 1.0], [0, 1], r"logits have shape \(2,\)"),
        ([[1.0]], [0], "classes >= 2"),
        (np.empty((0, 2)), np.empty(0, dtype=int), "n >= 1"),
    ],
)
def test_bad_input_is_refused_in_words(logits, labels, words):
    with pytest.raises(ValueError, match=words):
        classification_metrics(np.array(logits), np.array(labels))
