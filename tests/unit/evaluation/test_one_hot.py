"""`lingo_ds.load(..).one_hot_model()` in stock tangermeme and captum, and against `predict`."""

from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from tangermeme.marginalize import marginalize
from tangermeme.predict import predict
from tangermeme.saturation_mutagenesis import saturation_mutagenesis
from tangermeme.utils import one_hot_encode

import lingo_ds
from lingo_ds.utils.errors import UserError
from tests.unit.kinds_of_adapter import random_adapter

SEQUENCES = ["ACGTTGCANNACGTATAAAG", "TTGACCATGCNATTGCAACC"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> dict[str, Path]:
    return {
        "text": random_adapter(tmp_path_factory.mktemp("text"), average_strands=True),
        "nucleotides": random_adapter(tmp_path_factory.mktemp("bases"), tokens="nucleotides"),
        "both strands": random_adapter(
            tmp_path_factory.mktemp("both"), tokens="nucleotides", average_strands=True
        ),
        "values": random_adapter(
            tmp_path_factory.mktemp("values"),
            tokens="nucleotides",
            kind="regression",
            mean=(3.0, 4.0),
            scale=(10.0, 0.1),
        ),
    }


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("kind", ["text", "nucleotides", "both strands", "values"])
def test_it_gives_what_predict_gives(adapters, kind, packing):
    predictor = lingo_ds.load(adapters[kind], f"packing={packing}", "batch_tokens=80")
    model = predictor.one_hot_model()
    x = torch.stack([one_hot_encode(one, ignore=["N"]) for one in SEQUENCES]).float()
    with torch.no_grad():
        outputs = model(x)
    answers = predictor.predict(SEQUENCES)
    if kind == "values":
        assert np.allclose(outputs, answers.values, rtol=1e-4, atol=1e-4)
    else:
        assert np.allclose(outputs.softmax(1), answers.probabilities, atol=1e-5)


def test_stock_tangermeme_runs_on_it(adapters):
    model = lingo_ds.load(adapters["nucleotides"]).one_hot_model()
    x = torch.stack([one_hot_encode(one) for one in ("ACGTTGCATG", "TTGACCATGC")]).float()
    effects = saturation_mutagenesis(model, x, raw_outputs=True, device="cpu")
    assert np.allclose(effects.y0, model(x).detach(), atol=1e-5)
    changed = x.clone()
    changed[1, :, 3] = torch.tensor([0.0, 0, 0, 1])
    found = effects.y_hat[1, 3, 3]
    assert np.allclose(found, model(changed)[1].detach(), atol=1e-5)
    before, after = marginalize(model, x, "TATA", device="cpu")
    with_tata = predict(
        model, torch.stack([one_hot_encode("ACGTATAATG"), one_hot_encode("TTGTATATGC")]).float()
    )
    assert np.allclose(before, model(x).detach(), atol=1e-5)
    assert after.shape == before.shape and np.allclose(after, with_tata, atol=1e-5)


def test_captum_integrates_its_gradients(adapters):
    model = lingo_ds.load(adapters["both strands"]).one_hot_model()
    x = one_hot_encode("ACGTTGCATGACCATTAGCA").float()[None]
    found, delta = IntegratedGradients(model).attribute(
        x, torch.zeros_like(x), target=1, n_steps=32, return_convergence_delta=True
    )
    difference = (model(x) - model(torch.zeros_like(x)))[0, 1]
    assert abs(difference) > 0.05 and abs(delta) < 0.01 * abs(difference)
    assert found.abs().sum(1).min() > 0


def test_text_has_no_gradient_and_says_so(adapters):
    x = one_hot_encode("ACGTTGCATG").float()[None].requires_grad_()
    outputs = lingo_ds.load(adapters["text"]).one_hot_model()(x)
    with pytest.raises(UserError, match=r"reads text.*no gradient.*--method ism"):
        outputs.sum().backward()


def test_wrong_shapes_and_long_sequences_are_refused(adapters):
    model = lingo_ds.load(adapters["nucleotides"]).one_hot_model()
    with pytest.raises(UserError, match=r"\(batch, 4, length\)"):
        model(torch.zeros(1, 10, 4))
    with pytest.raises(UserError, match=r"x: '200 bases': is longer than the \d+ bases that"):
        model(torch.zeros(1, 4, 200))
