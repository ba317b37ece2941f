"""The adapted linear maps of a backbone, and the hooks that adapt them."""

import difflib
import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import Site, SiteViews
from lingo_ds.models.adapters.lowrank import add_adapter_, project
from lingo_ds.utils.errors import Mistake, UserError


def choose_sites(
    linear_maps: Mapping[str, tuple[int, int]], *, targets: str | Sequence[str], family_default: Sequence[str]
) -> list[Site]:
    """The sites that `adapter.targets` names, in the backbone's own order.

    Args:
        linear_maps: (d_out, d_in) of every linear map inside the decoder layers, by module name.
        targets: `all-linear`, a list of names or endings of names, or one regex that must match a whole name.
        family_default: endings that `all-linear` stands for; empty: every map.

    Raises:
        UserError: for each target that matches nothing, with the nearest name.
    """
    if targets == "all-linear":
        targets = list(family_default) or list(linear_maps)
    chosen: list[str] = []
    unmatched: list[str] = []
    if isinstance(targets, str):
        chosen = [name for name in linear_maps if re.fullmatch(targets, name)]
        targets = [] if chosen else [targets]  # one ending then, not a regex of whole names
    if not chosen:
        matched = {t: [n for n in linear_maps if n == t or n.endswith(f".{t}")] for t in targets}
        chosen = [name for name in linear_maps if any(name in names for names in matched.values())]
        unmatched = [target for target, names in matched.items() if not names]
    if unmatched:
        endings = sorted({part for name in linear_maps for part in (name, name.rsplit(".", 1)[-1])}, key=len)
        raise UserError([_no_match(target, endings) for target in unmatched])
    return [Site(name, *linear_maps[name]) for name in chosen]


def _no_match(target: str, known: Sequence[str]) -> Mistake:
    near = difflib.get_close_matches(target, known, n=1, cutoff=0.4)
    fix = f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:8])}"
    return Mistake("adapter.targets", target, "matches no linear map of the backbone", fix)


class SiteHooks:
    """The forward hooks that add each site's adapter to its frozen map's output."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        bank: AdapterBank,
        *,
        dropout: float,
        shared_inputs: Sequence[Sequence[str]] = (),
    ):
        """Hooks the bank's sites among `modules`; `shared_inputs` names maps that read the same tensor."""
        self._modules, self._bank, self._dropout = modules, bank, dropout
        self._shared_inputs = shared_inputs
        self._handles: list[RemovableHandle] = []
        self.attach()

    def attach(self) -> None:
        """Hooks every site with a rank above 0; call again after the bank was compacted."""
        self.detach()
        layout = self._bank.layout
        sites = {site.name: k for k, site in enumerate(layout.sites) if layout.ranks[k] > 0}
        groups = [[sites.pop(name) for name in names if name in sites] for names in self._shared_inputs]
        groups += [[k] for k in sites.values()]
        self._handles = [handle for group in groups for handle in self._hook(group)]

    def detach(self) -> None:
        """Removes all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, group: Sequence[int]) -> list[RemovableHandle]:
        """Hooks on maps that read the same tensor; `group` has their places in the layout."""
        bank = self._bank
        projection = SharedProjection([bank.leaves[k] for k in group], dropout=self._dropout)

        def hook(place: int, k: int) -> RemovableHandle:
            def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                projected = projection(place, args[0], training=module.training)
                return add_adapter_(output, projected, bank.leaves[k], scale=bank.scale)

            return self._modules[bank.layout.sites[k].name].register_forward_hook(add)

        return [hook(place, k) for place, k in enumerate(group)]


class SharedProjection:
    """The first factor of adapters whose maps read the same tensor, computed when the first of them runs."""

    def __init__(self, sites: Sequence[SiteViews], *, dropout: float):
        self._sites, self._dropout = sites, dropout
        self._x: Tensor | None = None
        self._waiting: dict[int, Tensor] = {}

    def __call__(self, place: int, x: Tensor, *, training: bool) -> Tensor:
        """(tokens, rank) of the site at `place`; kept only for the very tensor it was computed from."""
        if x is not self._x or place not in self._waiting:
            parts = project(x, self._sites, dropout=self._dropout, training=training)
            self._x, self._waiting = x, dict(enumerate(parts))
        part = self._waiting.pop(place)
        if not self._waiting:
            self._x = None
        return part
