"""Metrics against numbers worked out by hand, and at the edges where they are undefined."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from lingo_ds.evaluation.metrics import classification_metrics, multilabel_metrics, regression_metrics

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
    p = np.array([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])  # ties of the same numbers in any order
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


# -- labels that may each be true


def labelled(rows: int = 40, labels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties, and labels: one always false, one unknown, the others with gaps."""
    draw = np.random.default_rng(0)
    probabilities = draw.integers(1, 9, (rows, labels)) / 10
    truth = draw.integers(0, 2, (rows, labels)).astype(float)
    truth[draw.random((rows, labels)) < 0.2] = np.nan
    truth[:, 0], truth[:, 1] = 0, np.nan
    return probabilities, truth


def test_labels_are_scored_as_sklearn_does_on_what_is_known():
    p, y = labelled()
    overall, by_label = multilabel_metrics(p, y, thresholds=[0.5, 0.5, 0.3, 0.5, 0.7], names="abcde")
    known = ~np.isnan(y)
    for k, name in enumerate("abcde"):
        if k < 2:
            assert by_label[name] == {"auroc": None, "auprc": None, "positives": 0}
            continue
        truth, found = y[known[:, k], k], p[known[:, k], k]
        assert by_label[name] == pytest.approx(
            {
                "auroc": sklearn.metrics.roc_auc_score(truth, found),
                "auprc": sklearn.metrics.average_precision_score(truth, found),
                "positives": truth.sum(),
            }
        )
    flat, decided = y[known], (p > np.array([0.5, 0.5, 0.3, 0.5, 0.7]))[known]
    assert overall == pytest.approx(
        {
            "macro_auroc": np.mean([by_label[name]["auroc"] for name in "cde"]),
            "macro_auprc": np.mean([by_label[name]["auprc"] for name in "cde"]),
            "micro_f1": sklearn.metrics.f1_score(flat, decided),
            "micro_mcc": sklearn.metrics.matthews_corrcoef(flat, decided),
            "labels_left_out": 2,
        }
    )


def test_labels_known_nowhere_have_no_areas():
    overall, _ = multilabel_metrics(np.full((3, 2), 0.5), np.full((3, 2), np.nan), thresholds=0.5, names="ab")
    assert (overall["macro_auroc"], overall["macro_auprc"], overall["labels_left_out"]) == (None, None, 2)


# -- values


def test_values_are_scored_as_scipy_and_sklearn_do_on_what_is_known():
    draw = np.random.default_rng(0)
    y = draw.normal(size=(30, 2)) * [1, 100]
    p = y + draw.normal(size=(30, 2)) * [1, 30]
    y[3, 0] = y[4, 1] = y[9, 1] = np.nan
    y[:5, 1] = np.round(y[:5, 1], -2)  # ties among ranks
    overall, by_value = regression_metrics(p, y, names="ab")
    for k, name in enumerate("ab"):
        known = ~np.isnan(y[:, k])
        truth, found = y[known, k], p[known, k]
        assert by_value[name] == pytest.approx(
            {
                "pearson": scipy.stats.pearsonr(found, truth).statistic,
                "spearman": scipy.stats.spearmanr(found, truth).statistic,
                "r2": sklearn.metrics.r2_score(truth, found),
                "rmse": sklearn.metrics.root_mean_squared_error(truth, found),
                "mae": sklearn.metrics.mean_absolute_error(truth, found),
            }
        )
    for key, value in overall.items():
        assert value == pytest.approx((by_value["a"][key] + by_value["b"][key]) / 2)


@pytest.mark.parametrize(
    "predicted, values, expected",
    [
        ([2, 2, 2], [1, 2, 3], {"pearson": None, "spearman": None, "r2": 0, "rmse": (2 / 3) ** 0.5}),
        ([1, 2, 3], [5, 5, 5], {"pearson": None, "spearman": None, "r2": None, "mae": 3}),
        ([3, 2, 1], [1, 2, 3], {"pearson": -1, "spearman": -1, "r2": -3}),
        ([1, 2, 900], [1, 2, 3], {"spearman": 1}),
        ([1, 2], [np.nan, np.nan], dict.fromkeys(("pearson", "spearman", "r2", "rmse", "mae"))),
        ([1, 2], [np.nan, 4], {"pearson": None, "r2": None, "rmse": 2, "mae": 2}),
    ],
)
def test_values_at_the_edges(predicted, values, expected):
    overall, _ = regression_metrics(np.array([predicted]).T, np.array([values], float).T, names="a")
    for key, value in expected.items():
        assert overall[key] == (None if value is None else pytest.approx(value)), key


# -- thresholds


def test_a_threshold_moves_the_decision_and_not_the_ranking():
    logits, labels = logits_of([0.9, 0.4, 0.6, 0.2, 0.3]), np.array([1, 1, 0, 0, 0])
    half, low = (classification_metrics(logits, labels, threshold=t) for t in (0.5, 0.35))
    assert half == classification_metrics(logits, labels)
    assert (half["accuracy"], low["accuracy"]) == (3 / 5, 4 / 5)
    assert (half["auroc"], half["brier"]) == (low["auroc"], low["brier"])
