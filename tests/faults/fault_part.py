"""One line of the table that `make faults` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Part:
    """One line of the table. `bound` is the rule of three: with 95 % confidence the rate is below it."""

    name: str
    trials: int
    faults: Counter[str]
    seconds: float
    details: Mapping[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def bound(self) -> float:
        """3 / n."""
        return 3 / self.trials
