"""What rounding a merged weight to the file's dtype loses of the adapter's change."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rounding:
    """What writing W + delta in the file's dtype lost of the adapter's term.

    Attributes:
        largest: largest absolute difference of one entry.
        lost: sum of squared differences.
        delta: sum of squares of the adapter's term.
        entries: number of entries of the map.
    """

    largest: float = 0.0
    lost: float = 0.0
    delta: float = 0.0
    entries: int = 0

    @property
    def relative(self) -> float:
        """RMS of the difference over RMS of the adapter's term; 0 where there is neither."""
        return math.sqrt(self.lost / self.delta) if self.delta else 0.0

    def __add__(self, other: "Rounding") -> "Rounding":
        """The rounding of both maps together."""
        return Rounding(
            largest=max(self.largest, other.largest),
            lost=self.lost + other.lost,
            delta=self.delta + other.delta,
            entries=self.entries + other.entries,
        )

    def to_dict(self) -> dict[str, float]:
        """Everything as plain JSON values."""
        rms = [math.sqrt(part / self.entries) if self.entries else 0.0 for part in (self.lost, self.delta)]
        return {"largest": self.largest, "rms": rms[0], "delta_rms": rms[1], "relative_rms": self.relative}
