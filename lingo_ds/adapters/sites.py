"""Which linear maps of a backbone are adapted, and the hooks that adapt them."""

import difflib
import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lingo_ds.adapters.bank import AdapterBank
from lingo_ds.adapters.layout import Site
from lingo_ds.adapters.svd import add_adapter
from lingo_ds.errors import Mistake, UserError


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
        targets = [] if chosen else [targets]  # not a regex on full names, then, but one ending
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

    def __init__(self, modules: Mapping[str, nn.Module], bank: AdapterBank, *, dropout: float):
        self._modules, self._bank, self._dropout = modules, bank, dropout
        self._handles = []
        self.attach()

    def attach(self) -> None:
        """Hooks every site with a rank above 0; call again after the bank was compacted."""
        for handle in self._handles:
            handle.remove()
        ranks = enumerate(self._bank.layout.ranks)
        self._handles = [self._hook(k) for k, rank in ranks if rank > 0]

    def _hook(self, k: int):
        bank = self._bank
        site = bank.leaves[k]

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return add_adapter(
                output, args[0], site, scale=bank.scale, dropout=self._dropout, training=module.training
            )

        return self._modules[bank.layout.sites[k].name].register_forward_hook(add)
