"""Thresholds against the best of all, by scikit-learn."""

import numpy as np
import pytest
import sklearn.metrics

from lingo_ds.evaluation.thresholds import choose_threshold


@pytest.mark.parametrize("metric", ["mcc", "auroc", "accuracy", "macro_f1", "micro_f1"])
@pytest.mark.parametrize("seed", range(4))
def test_the_chosen_threshold_is_the_best_of_all(metric, seed):
    draw = np.random.default_rng(seed)
    truth = draw.random(60) < 0.2
    p = np.clip(np.round(0.3 * truth + draw.random(60) * 0.6, 2), 0.01, 0.99)

    def quality(threshold: float) -> float:
        score = {
            "accuracy": sklearn.metrics.accuracy_score,
            "macro_f1": lambda y, d: sklearn.metrics.f1_score(y, d, average="macro"),
            "micro_f1": sklearn.metrics.f1_score,
        }.get(metric, sklearn.metrics.matthews_corrcoef)
        return score(truth, p > threshold)

    chosen = choose_threshold(p, truth, metric=metric)
    best = max(quality(t) for t in np.arange(0.005, 1, 0.01))
    assert quality(chosen) == pytest.approx(best)
    assert quality(chosen) > quality(0.5) or chosen == 0.5


def test_of_equal_thresholds_the_middle_one_is_taken_and_one_class_has_none():
    p = np.array([0.1, 0.2, 0.8, 0.9])
    assert choose_threshold(p, np.array([0, 0, 1, 1]), metric="mcc") == 0.5
    assert choose_threshold(p, np.array([0, 1, 1, 1]), metric="mcc") == pytest.approx(0.15)
    assert choose_threshold(p, np.array([1, 1, 1, 1]), metric="mcc") == 0.5
    assert choose_threshold(p[:0], np.array([]), metric="mcc") == 0.5
