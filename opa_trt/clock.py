"""Where time comes from, so that tests can decide what time it is."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Milliseconds since some fixed moment; never goes back."""

    def now_ms(self) -> float:
        """The present, in ms."""


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_ms(self) -> float:
        """The present, in ms."""
        return time.perf_counter_ns() / 1e6


class VirtualClock:
    """A clock that stands still until it is told to advance."""

    def __init__(self) -> None:
        self._now = 0.0

    def now_ms(self) -> float:
        """The present, in ms."""
        return self._now

    def advance(self, ms: float) -> None:
        """Let ``ms`` milliseconds pass."""
        self._now += ms
