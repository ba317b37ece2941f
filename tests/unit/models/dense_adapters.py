"""Random banks on small frozen models, and the same functions from dense matrices."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import BankLayout, Site
from lingo_ds.models.adapters.sites import AdaptedSites

CPU = torch.device("cpu")


SITES = (Site("first", 5, 7), Site("second", 6, 5), Site("third", 5, 6))


CLASSES = 3


SCALE = 16 / 4


class Frozen(nn.Module):
    """Linear, transformers' Conv1D and Linear in a row, no bias in the last."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(7, 5), Conv1D(6, 5), nn.Linear(6, 5, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.requires_grad_(False).copy_(torch.randn(parameter.shape, generator=generator) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


def new_bank(
    *,
    ranks: Sequence[int] = (4, 4, 4),
    dtype: torch.dtype | None = None,
    importance: bool = False,
    seed: int = 1,
    sites: Sequence[Site] = SITES,
    has_lam: bool = True,
    hidden: int = 5,
) -> AdapterBank:
    """A bank in which every entry of value, moments and importance is random, lam included."""
    layout = BankLayout(tuple(sites), tuple(ranks), (CLASSES, hidden), has_lam)
    bank = AdapterBank(
        layout,
        scale=SCALE,
        dtype=dtype or torch.get_default_dtype(),
        device=CPU,
        scalars=5,
        importance=importance,
    )
    generator = torch.Generator().manual_seed(seed)
    for name, flat in bank.state().items():
        if name != "mask":
            flat.copy_(torch.randn(flat.shape, generator=generator) / 2)
    bank.refresh()
    return bank


def inputs(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Dense:
    """The same function from separate leaves: P (d_out, rank), the product m * lam, Q (rank, d_in), head.

    LoRA has no product: (0,), which counts as ones.
    """

    def __init__(self, model: Frozen, bank: AdapterBank, flat: Tensor | None = None):
        flat = bank.master if flat is None else flat
        self.model, self.layout, self.scale = model, bank.layout, bank.scale
        self.parts = []
        for k in range(len(bank.layout.sites)):
            p, lam, q = bank.layout.site(flat, k)
            first, last = (int(bank.layout.first_triplet[i]) for i in (k, k + 1))
            product = lam * bank.mask[first:last] if bank.layout.has_lam else lam
            self.parts.append([part.detach().clone().requires_grad_() for part in (p.T, product, q)])
        self.head = bank.layout.head(flat).detach().clone().requires_grad_()

    def weight(self, k: int) -> Tensor:
        """W + alpha / r0 P diag(m lam) Q, or W + alpha / r P Q, as one matrix (d_out, d_in)."""
        module = self.model.get_submodule(self.layout.sites[k].name)
        w = module.weight.T if isinstance(module, Conv1D) else module.weight
        p, product, q = self.parts[k]
        return w + self.scale * (p @ torch.diag(product) if self.layout.has_lam else p) @ q

    def hidden(self, x: Tensor) -> Tensor:
        for k, name in enumerate(("first", "second", "third")):
            x = F.linear(x if k == 0 else torch.tanh(x), self.weight(k), getattr(self.model, name).bias)
        return x

    def logits(self, x: Tensor) -> Tensor:
        return self.hidden(x) @ self.head.T

    def flat_grad(self) -> Tensor:
        """The leaves' gradients where the bank's buffer has them."""
        flat = torch.zeros(self.layout.size)
        for k, part in enumerate(self.parts):
            views = self.layout.site(flat, k)
            views.p.copy_(part[0].grad.T)
            views.q.copy_(part[2].grad)
            if self.layout.has_lam:
                views.lam.copy_(part[1].grad)
        self.layout.head(flat).copy_(self.head.grad)
        return flat


def hooked(bank: AdapterBank, *, dropout: float = 0.0) -> Frozen:
    model = Frozen()
    model.hooks = AdaptedSites(dict(model.named_modules()))
    model.hooks.add(bank, dropout=dropout)
    return model.eval()


def logits_of(model: Frozen, bank: AdapterBank, x: Tensor) -> Tensor:
    return model(x.to(bank.dtype)) @ bank.compute.head.T


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((found - expected).norm() / expected.norm())


def some_kept(triplets: int, *, seed: int = 3) -> np.ndarray:
    kept = np.random.default_rng(seed).random(triplets) < 0.5
    assert 0 < kept.sum() < triplets
    return kept


def site_parts(layout: BankLayout, flat: Tensor) -> list[Tensor]:
    """Every view that a forward pass uses, head and learned tokens last."""
    parts = [view for k in range(len(layout.sites)) for view in layout.site(flat, k)]
    return [*parts, layout.head(flat), layout.tokens(flat)]
