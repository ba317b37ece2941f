"""The adapted linear maps of a backbone: which they are, and how they are adapted."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from lingo_ds.models.adapters.adapted_maps import AdaptedMaps
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import Site
from lingo_ds.models.ops.frozen_map import FrozenMap
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


class AdaptedSites:
    """Adapts a backbone's linear maps: replaces the forward of each that has a rank above 0."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        bank: AdapterBank,
        *,
        dropout: float,
        shared_inputs: Sequence[Sequence[str]] = (),
    ):
        """Adapts the bank's sites among `modules`; `shared_inputs` names maps that read the same tensor."""
        self._modules, self._bank, self._dropout = modules, bank, dropout
        self._shared_inputs = shared_inputs
        self._adapted: list[tuple[nn.Module, Callable[..., Tensor] | None]] = []
        self.attach()

    def attach(self) -> None:
        """Adapts every site with a rank above 0; call again after the bank was compacted."""
        self.detach()
        layout = self._bank.layout
        sites = {site.name: k for k, site in enumerate(layout.sites) if layout.ranks[k] > 0}
        groups = [sorted(sites.pop(name) for name in names if name in sites) for names in self._shared_inputs]
        for group in [*filter(None, groups), *([k] for k in sites.values())]:
            together = self._bank.compute.are_adjacent(group)
            for part in [group] if together else [[k] for k in group]:
                self._adapt(part)

    def detach(self) -> None:
        """Gives every map its own forward back."""
        for module, own in self._adapted:
            if own is None:
                del module.forward
            else:
                module.forward = own
        self._adapted = []

    def _adapt(self, group: Sequence[int]) -> None:
        """Adapts maps that read the same tensor; `group` has their places in the layout."""
        modules = [self._modules[self._bank.layout.sites[k].name] for k in group]
        maps = AdaptedMaps(
            [FrozenMap(module) for module in modules],
            self._bank.compute.operands(group),
            dropout=self._dropout,
            anchor=self._bank.anchor,
        )
        for place, module in enumerate(modules):
            self._adapted.append((module, vars(module).get("forward")))
            module.forward = _Forward(maps, place, module)


class _Forward:
    """In place of a map's own forward."""

    def __init__(self, maps: AdaptedMaps, place: int, module: nn.Module):
        self._maps, self._place, self._module = maps, place, module

    def __call__(self, x: Tensor) -> Tensor:
        return self._maps(self._place, x, training=self._module.training)
