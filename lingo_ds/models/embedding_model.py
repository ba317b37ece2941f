"""An adapted model that gives the pooled hidden states of one layer beside its logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lingo_ds.models.adapted_model import (
    AdaptedModel,
    joint_packed_pooled,
    joint_padded_pooled,
    pool,
    pool_pack,
)
from lingo_ds.models.backbone.backbone import Backbone
from lingo_ds.models.backbone.layer_states import keeping_states
from lingo_ds.models.backbone.pack_places import PackPlaces
from lingo_ds.utils.errors import Mistake, UserError


class EmbeddingModel:
    """A model whose outputs are logits and, behind them, the embedding of each example, from one pass.

    An embedding is one layer's hidden states pooled as the head's are. Layers are numbered as in
    transformers' `hidden_states`: 0 is what the first layer reads, and the number of layers what the head
    reads, behind the final norm.
    """

    def __init__(self, model: AdaptedModel, layer: int):
        """Takes the model, and the number of a layer, see `find_layer`."""
        self._model, self._layer = model, layer

    @property
    def size(self) -> int:
        """Width of an embedding."""
        between, behind = self.backbone.state_sizes
        return behind if self._layer == self.backbone.layers else between

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self._model.backbone

    def pack_places(self, prefix: int, lengths: Sequence[int]) -> PackPlaces:
        """The places of a pack, see `AdaptedModel.pack_places`."""
        return self._model.pack_places(prefix, lengths)

    def packed_logits(self, input_ids: Tensor, places: PackPlaces) -> Tensor:
        """(n, outputs + size) fp32 of a pack, see `AdaptedModel.packed_logits`."""
        with keeping_states(self.backbone.module, self._layer) as kept:
            (pooled,) = joint_packed_pooled([self._model], [(input_ids, places)])
        own = pool_pack(kept[0].squeeze(0), places) if kept else pooled
        return self._joined(pooled, own)

    def padded_logits(self, input_ids: Tensor, attention_mask: Tensor | None, lengths: Tensor) -> Tensor:
        """(n, outputs + size) fp32 of padded examples, see `AdaptedModel.padded_logits`."""
        with keeping_states(self.backbone.module, self._layer) as kept:
            (pooled,) = joint_padded_pooled([self._model], [(input_ids, attention_mask, lengths)])
        own = pool(kept[0], lengths, self._model.pooling) if kept else pooled
        return self._joined(pooled, own)

    def _joined(self, pooled: Tensor, own: Tensor) -> Tensor:
        return torch.cat([self._model.head(pooled), own.float()], 1)


def find_layer(layer: int | None, *, layers: int) -> int:
    """The number of a layer whose states are embeddings, 0 to `layers`; None: the last.

    Raises:
        UserError: on every process, where there is no such layer.
    """
    if layer is None:
        return layers
    if not 0 <= layer <= layers:
        rule = f"is no layer: 0 is the input embeddings, and {layers} the last"
        raise UserError(Mistake("--layer", layer, rule, f"give a number from 0 to {layers}"), on_all=True)
    return layer
