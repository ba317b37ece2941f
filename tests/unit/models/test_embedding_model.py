"""Embeddings of every layer, against the `hidden_states` of transformers for one example at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from lingo_ds.models.adapted_model import AdaptedModel
from lingo_ds.models.embedding_model import EmbeddingModel
from tests.unit.models.test_packed_forward import (
    CLASSES,
    ENCODERS,
    LENGTHS,
    distance,
    folders,  # noqa: F401  # a fixture
    model_of,
    padded_and_packed,
    some_examples,
)

POOL = {"last": lambda states: states[-1], "first": lambda states: states[0], "mean": lambda s: s.mean(0)}


def pooled_by_transformers(model: AdaptedModel, examples: list[list[int]], pooling: str) -> list[Tensor]:
    """Of each layer (n, size), from the module with its adapters, which transformers asks for all states."""
    outputs = [
        model.backbone.module(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        for ids in examples
    ]
    return [
        torch.stack([POOL[pooling](states[0]) for states in layer]) for layer in zip(*outputs, strict=True)
    ]


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gpt_neox", "bert", "esm"])
def test_every_layer_packed_and_padded_is_that_of_transformers(folders, family, pooling):  # noqa: F811
    examples = some_examples(LENGTHS["different"])
    batch, pack = padded_and_packed(examples, share_prefix=family not in ENCODERS)
    padded, packed = (model_of(folders(family), packed=k, pooling=pooling) for k in (False, True))
    logits = batch.logits(padded)
    expected = pooled_by_transformers(padded, examples, pooling)
    assert len(expected) == padded.backbone.layers + 1
    for layer, states in enumerate(expected):
        if pooling != "first" or (family in ENCODERS and layer):  # else all have the same first token
            assert np.ptp(states.numpy(), axis=0).max() > 0.01, "the oracle tells examples apart"
        for model, forward in ((padded, batch), (packed, pack)):
            embedding = EmbeddingModel(model, layer)
            found = forward.logits(embedding)[forward.rows.argsort()]
            assert found.dtype == torch.float32 and found.shape[1] == CLASSES + embedding.size
            assert distance(found[:, :CLASSES], logits) < 1e-5
            assert distance(found[:, CLASSES:], states) < 1e-5, layer
    assert not any(one._forward_pre_hooks for one in packed.backbone.module.modules()), (
        "nothing is left on the model"
    )
