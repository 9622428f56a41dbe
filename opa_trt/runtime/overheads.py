"""What the runtime itself takes: to decide, to gather rows, to collect answers."""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from statistics import median_high

REMEMBERED = 50  # of each kind, of which the median counts
ENOUGH = 5  # of one kind, before others are no longer counted with them


class Kind(Enum):
    """What becomes of a group."""

    WHOLE = "decided, and all of it sent on"
    SPLIT = "decided, and a part of it sent on: rows are gathered, and two nodes answer"
    STOP = "decided, and none of it sent on"
    ALONE = "answered by its entry, and nothing decided"
    ENTRY = "an entry picked for it"
    TRY = "another entry thought of, of which little is known"


STAND_INS = {
    Kind.WHOLE: (Kind.SPLIT, Kind.STOP),
    Kind.SPLIT: (Kind.WHOLE, Kind.STOP),
    Kind.STOP: (),
    Kind.ALONE: (),  # others decide, which takes longer
    Kind.ENTRY: (),
    Kind.TRY: (),
}


class Overheads:
    """ms that the runtime itself takes, by what becomes of a group: medians of recent ones."""

    def __init__(self) -> None:
        self._recent: dict[Kind, deque[float]] = {kind: deque(maxlen=REMEMBERED) for kind in Kind}

    def observe(self, kind: Kind, ms: float) -> None:
        """Let what it took count; clocks may jump."""
        if math.isfinite(ms):
            self._recent[kind].append(max(0.0, ms))

    def ms(self, kind: Kind) -> float:
        """What it takes; while little is known, as far as other kinds tell; 0 of nothing."""
        known = [*self._recent[kind]]
        for other in STAND_INS[kind]:
            if len(known) < ENOUGH:  # one that was interrupted would count for all
                known += self._recent[other]
        return median_high(known) if known else 0.0

    def beyond_ms(self) -> float:
        """What a split takes beyond sending on the whole group."""
        return max(0.0, self.ms(Kind.SPLIT) - self.ms(Kind.WHOLE))

    def forget(self) -> None:
        """Nothing was sent on for long: what that takes is to be learned anew."""
        self._recent[Kind.WHOLE].clear()
        self._recent[Kind.SPLIT].clear()
