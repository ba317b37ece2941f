"""The runs whose adapters a backbone carries at the same time, and whose rows are whose in a pass.

A pass through the backbone may hold tokens of several runs, those of each next to one another. Every map is
one product over all rows; each run's adapter acts on its own rows alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lingo_ds.models.adapters.bank import AdapterBank

SPREAD = 0x9E3779B9
"""Odd number whose multiples spread over 32 bits, all that the CPU's generator takes of a seed."""


@dataclass(eq=False)
class Tenant:
    """One run's adapters on a backbone that several may share.

    Attributes:
        bank: its adapters.
        dropout: probability of dropping an entry of the adapters' input in training.
        dropout_seed: what the next pass draws from, whoever else is in it and however often it is computed;
            None: from torch's generator as it stands.
    """

    bank: AdapterBank
    dropout: float = 0.0
    dropout_seed: int | None = None

    def seed_dropout(self, number: int) -> None:
        """Seeds torch's generator for what the adapters with this number drop now."""
        if self.dropout_seed is not None:
            _generator(self.bank.device).manual_seed((self.dropout_seed + number * SPREAD) % 2**63)


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        generators: Any = torch.cuda.default_generators
        return generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator


class Share(NamedTuple):
    """The rows of one run in a pass: `rows` of all of them; None: they are all its own."""

    tenant: Tenant
    rows: slice | None


class PassRows:
    """Whose rows are whose in the pass that began last, until the next one begins.

    A layer that is recomputed in the backward pass needs it after the forward is over.
    """

    def __init__(self) -> None:
        self._shares: dict[int, list[Share]] = {}
        self._alone: list[Share] = []

    def begin(self, tenants: Sequence[Tenant], *counts: Sequence[int]) -> None:
        """Begins a pass.

        Args:
            tenants: whose rows it has, in their order.
            counts: how many rows each of them has, in every form in which maps see the pass: tokens, and
                examples where the last layer is computed for one token of each.
        """
        self._alone = [Share(tenants[0], None)] if len(tenants) == 1 else []
        self._shares = {}
        for count in counts:
            first, shares = 0, []
            for tenant, own in zip(tenants, count, strict=True):
                shares.append(Share(tenant, slice(first, first + own)))
                first += own
            self._shares[first] = shares

    def of(self, rows: int) -> list[Share]:
        """The shares of the runs in so many rows."""
        return self._alone or self._shares[rows]
