"""Losses and their gradients against plain loops over examples and labels, and their sum over any split."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lingo_ds.config.task_config import TaskConfig
from lingo_ds.data.task import Task
from lingo_ds.training.losses import binary_cross_entropy_sum, cross_entropy_sum, make_loss, squared_error_sum

CPU = torch.device("cpu")
ROWS, OUTPUTS, GAMMA = 7, 3, 1.7
FACTORS = [0.5, 1.0, 4.0]
MEAN, SCALE = (10.0, -2.0, 0.0), (3.0, 0.5, 1e-3)


pytestmark = pytest.mark.usefixtures("float64")


def task_of(kind: str) -> Task:
    moments = {"mean": MEAN, "scale": SCALE} if kind == "regression" else {}
    return Task("t", kind, OUTPUTS, None, None, 9, **moments)


def example(kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels with unknown ones (a row of them too), and weights with a filler among them."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, OUTPUTS, generator=draw, requires_grad=True)
    weights = torch.tensor([1.0, 1, 0, 1, 1, 1, 1])
    if kind == "multiclass":
        return logits, torch.randint(OUTPUTS, (ROWS,), generator=draw), weights
    labels = torch.randint(2, (ROWS, OUTPUTS), generator=draw)
    if kind == "regression":
        labels = torch.randn(ROWS, OUTPUTS, generator=draw) * torch.tensor(SCALE) + torch.tensor(MEAN)
    labels = labels.to(torch.float32)
    labels[1, 2] = labels[4, 0] = labels[4, 1] = labels[5] = math.nan
    return logits, labels, weights


def by_hand(kind: str, row: Tensor, label: Tensor, factors: list[float], gamma: float) -> Tensor:
    """The loss of one example, from the formulas."""
    if kind == "multiclass":
        p = (row.exp() / row.exp().sum())[label]
        return -factors[int(label)] * (1 - p) ** gamma * p.log()
    parts = []
    for k in range(OUTPUTS):
        truth = float(label[k])
        if math.isnan(truth):
            continue
        if kind == "regression":
            parts.append((row[k] - (truth - MEAN[k]) / SCALE[k]) ** 2)
            continue
        p = 1 / (1 + (-row[k]).exp())
        p, factor = (p, factors[k]) if truth else (1 - p, 1.0)
        parts.append(-factor * (1 - p) ** gamma * p.log())
    return sum(parts) / len(parts) if parts else 0 * row.sum()


@pytest.mark.parametrize(
    "kind, setting, factors, gamma",
    [
        ("multiclass", {}, [1.0] * OUTPUTS, 0.0),
        ("multiclass", {"class_weights": FACTORS}, FACTORS, 0.0),
        ("multiclass", {"class_weights": FACTORS, "focal_gamma": GAMMA}, FACTORS, GAMMA),
        ("multilabel", {}, [1.0] * OUTPUTS, 0.0),
        ("multilabel", {"class_weights": FACTORS}, FACTORS, 0.0),
        ("multilabel", {"focal_gamma": GAMMA}, [1.0] * OUTPUTS, GAMMA),
        ("multilabel", {"class_weights": FACTORS, "focal_gamma": GAMMA}, FACTORS, GAMMA),
        ("regression", {}, [1.0] * OUTPUTS, 0.0),
    ],
)
def test_loss_and_gradient_are_the_formulas(kind, setting, factors, gamma):
    logits, labels, weights = example(kind)
    loss = make_loss(task_of(kind), TaskConfig(kind=kind, **setting), labels.numpy(), CPU)(
        logits, labels, weights
    )
    expected = sum(
        weight * by_hand(kind, row, label, factors, gamma)
        for row, label, weight in zip(logits, labels, weights, strict=True)
    )
    # the labels are float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    ours, theirs = (torch.autograd.grad(one, logits)[0] for one in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert ours[2].abs().max() == 0, "a filler has no gradient"
    assert ours.isfinite().all()


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("cuts", [[1], [3, 4], list(range(1, ROWS))])
def test_parts_add_up_to_the_whole(kind, cuts):
    logits, labels, weights = example(kind)
    loss = make_loss(task_of(kind), TaskConfig(kind=kind), labels.numpy(), CPU)
    whole = torch.autograd.grad(loss(logits, labels, weights), logits)[0]
    pieces = np.split(np.arange(ROWS), cuts)
    parts = sum(loss(logits[piece], labels[piece], weights[piece]) for piece in pieces)
    torch.testing.assert_close(torch.autograd.grad(parts, logits)[0], whole, rtol=1e-12, atol=1e-14)


def test_without_options_classes_have_torchs_cross_entropy():
    logits, labels, weights = example("multiclass")
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none") @ weights
    assert cross_entropy_sum(logits, labels, weights).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("loss", [cross_entropy_sum, binary_cross_entropy_sum])
def test_focal_loss_of_a_certain_answer_has_a_finite_gradient(loss, gamma):
    logits = torch.tensor([[60.0, -60.0]], requires_grad=True)
    labels = torch.tensor([0]) if loss is cross_entropy_sum else torch.tensor([[1.0, 0.0]])
    value = loss(logits, labels, torch.ones(1), focal_gamma=gamma)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


def test_balanced_weights_come_from_the_training_rows():
    logits, labels, weights = example("multiclass")
    rows = np.array([0] * 8 + [1] * 1 + [2] * 3)
    balanced = make_loss(task_of("multiclass"), TaskConfig(class_weights="balanced"), rows, CPU)
    factors = torch.tensor([12 / (3 * 8), 12 / (3 * 1), 12 / (3 * 3)])
    expected = cross_entropy_sum(logits, labels, weights, class_weights=factors)
    assert balanced(logits, labels, weights).item() == pytest.approx(expected.item(), rel=1e-6)


def test_large_values_of_small_spread_are_standardised_without_loss():
    values = torch.tensor([[1000.0], [1000.25]], dtype=torch.float32)
    mean, scale = torch.tensor([1000.125]), torch.tensor([0.125])
    loss = squared_error_sum(torch.tensor([[-1.0], [1.0]]), values, torch.ones(2), mean=mean, scale=scale)
    assert loss.item() == 0
