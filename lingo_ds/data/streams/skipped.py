"""Rows of a sound file that cannot be predicted: they are counted, and the first ones are named."""

import logging
from collections import Counter
from pathlib import Path

from lingo_ds.data.readers.genome import Genome
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)

MAX_NAMED_CASES = 5
"""Cases of each reason that are named in the log."""

MAX_NAMED_CONTIGS = 20
"""Contigs that are named in the log."""

BEYOND = "beyond the end of their contig"
MISMATCH = "with a REF that differs from the genome"
MISSING = "on contigs that the genome lacks"


class Skipped:
    """Counts of skipped rows by reason.

    Attributes:
        counts: by reason.
    """

    def __init__(self, *, strict: bool):
        """With `strict`, rows that do not fit the genome are mistakes instead."""
        self._strict = strict
        self.counts: Counter[str] = Counter()
        self._named: Counter[str] = Counter()
        self._contigs: Counter[str] = Counter()

    def add(
        self, reason: str, *, count: int = 1, mistake: Mistake | None = None, fits: bool = False
    ) -> Mistake | None:
        """Counts rows; the `mistake` in them is named, or returned where it is refused.

        With `fits` it does not show that file and genome belong apart, and is never refused.
        """
        self.counts[reason] += count
        if mistake is None or (self._strict and not fits):
            return mistake
        self._named[reason] += 1
        if self._named[reason] <= (MAX_NAMED_CONTIGS if reason == MISSING else MAX_NAMED_CASES):
            logger.warning("skipped: %s", mistake)
        return None

    def add_missing(self, contig: str, genome: Genome, *, where: str, count: int = 1) -> Mistake | None:
        """Counts rows on a contig that the genome lacks, see `add`; each contig is named once."""
        self._contigs[contig] += count
        if self._contigs[contig] > count:
            return self.add(MISSING, count=count)
        fix = "give the genome whose contigs the file names"
        if other := genome.other_name(contig):
            fix = f"it has {other!r}: rename one file's contigs, e.g. by bcftools annotate --rename-chrs"
        rule = f"is no contig of {genome.path.name}"
        return self.add(MISSING, count=count, mistake=Mistake(where, contig, rule, fix))

    def require_none(self, path: Path) -> None:
        """Checks that nothing was skipped, for a file without any other row.

        Raises:
            UserError: where something was skipped.
        """
        if self.counts:
            fix = "give a file with rows that can be predicted"
            if {BEYOND, MISMATCH, MISSING} & self.counts.keys():
                fix = "give the genome that the file was made with"
            raise UserError(Mistake(str(path), "every row", f"was skipped: {self}", fix))

    def __str__(self) -> str:
        """The counts, e.g. `3 beyond the end of their contig, 2 on contigs that the genome lacks (c9: 2)`."""
        parts = [f"{count:,} {reason}" for reason, count in self.counts.items()]
        if self._contigs:
            most = ", ".join(
                f"{name}: {count:,}" for name, count in self._contigs.most_common(MAX_NAMED_CASES)
            )
            more = ", .." if len(self._contigs) > MAX_NAMED_CASES else ""
            parts = [f"{part} ({most}{more})" if part.endswith(MISSING) else part for part in parts]
        return ", ".join(parts)
