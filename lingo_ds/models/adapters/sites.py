"""The adapted linear maps of a backbone: which they are, and how they are adapted."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lingo_ds.models.adapters.adapted_maps import AdaptedMaps, Adapters
from lingo_ds.models.adapters.bank import AdapterBank
from lingo_ds.models.adapters.layout import Site
from lingo_ds.models.adapters.tenants import PassRows, Tenant
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
    """Adapts a backbone's linear maps: replaces the forward of each that a run adapts with a rank above 0.

    Attributes:
        tenants: the runs whose adapters are on the maps.
        rows: which rows of a pass are whose; every forward must begin by saying so.
    """

    def __init__(self, modules: Mapping[str, nn.Module], *, shared_inputs: Sequence[Sequence[str]] = ()):
        """Takes the backbone's modules by name; `shared_inputs` names maps that read the same tensor."""
        self._modules, self._shared_inputs = modules, shared_inputs
        self.tenants: list[Tenant] = []
        self._adapted: list[tuple[nn.Module, Callable[..., Tensor] | None]] = []
        self._anchor: Tensor | None = None
        self.rows = PassRows()

    def add(self, bank: AdapterBank, *, dropout: float = 0.0) -> Tenant:
        """Adapts the sites of one more bank; until another one joins it, every pass is its own."""
        tenant = Tenant(bank, dropout)
        self.tenants.append(tenant)
        if self._anchor is None:
            self._anchor = torch.zeros((), device=bank.device, requires_grad=True)
        self.attach()
        self.rows.begin([tenant])
        return tenant

    def remove(self, tenant: Tenant) -> None:
        """Leaves a run's sites to the others."""
        self.tenants.remove(tenant)
        self.attach()

    def attach(self) -> None:
        """Adapts every site with a rank above 0 in some bank; call again after a bank was compacted.

        Maps that read the same tensor are always one function, whoever adapts which of them: the sum of what
        they send back has one order then, and a run the same bits beside any others.
        """
        self._detach()
        placed = [
            {site.name: k for k, site in enumerate(bank.layout.sites) if bank.layout.ranks[k] > 0}
            for bank in (tenant.bank for tenant in self.tenants)
        ]
        adapted = {name: None for names in placed for name in names}
        if not adapted:
            return
        grouped = {name for group in self._shared_inputs for name in group}
        for group in [*self._shared_inputs, *([name] for name in adapted if name not in grouped)]:
            self._adapt(group, placed)

    def _detach(self) -> None:
        """Gives every map its own forward back."""
        for module, own in self._adapted:
            if own is None:
                del module.forward
            else:
                module.forward = own
        self._adapted = []

    def _adapt(self, names: Sequence[str], placed: Sequence[Mapping[str, int]]) -> None:
        """Adapts maps that read the same tensor.

        Args:
            names: of the maps.
            placed: the place of each adapted map in the layout of every run, by its name.
        """
        assert self._anchor is not None, "there is one once a bank was added"
        modules = [self._modules[name] for name in names]
        adapters = [
            found
            for tenant, places in zip(self.tenants, placed, strict=True)
            for found in _adapters(tenant, names, places)
        ]
        maps = AdaptedMaps(
            [FrozenMap(module) for module in modules], adapters, self.rows, anchor=self._anchor
        )
        for place, module in enumerate(modules):
            self._adapted.append((module, vars(module).get("forward")))
            module.forward = _Forward(maps, place, module)


def _adapters(tenant: Tenant, names: Sequence[str], places: Mapping[str, int]) -> Iterator[Adapters]:
    """A run's adapters of maps that read the same tensor, as one where its rows of Q are one matrix."""
    own = sorted((places[name], k) for k, name in enumerate(names) if name in places)
    together = tenant.bank.compute.are_adjacent([site for site, _ in own]) if own else False
    for part in [own] if together else [[one] for one in own]:
        sites = [site for site, _ in part]
        yield Adapters(tenant, tuple(k for _, k in part), tenant.bank.compute.operands(sites), sites[0])


class _Forward:
    """In place of a map's own forward."""

    def __init__(self, maps: AdaptedMaps, place: int, module: nn.Module):
        self._maps, self._place, self._module = maps, place, module

    def __call__(self, x: Tensor) -> Tensor:
        return self._maps(self._place, x, training=self._module.training)
