"""Entries that are tried now and then, because what has not run for long is known by hearsay."""

from __future__ import annotations

import math

FIRST = 25  # groups until the first try
SOON, LATE = 5, 400  # until the next one: at least, and at most
MISSED = 200  # until the next one after one that was not kept: at least
HURRY, WAIT = 0.5, 8  # times as many as before, after one that was kept and one that was not
ASKED = 5  # until it is asked again, where nothing was worth a try
ALIKE = math.log(1.3)  # deadlines so many times longer are others
SHORTEST_MS, LONGEST_MS = 1e-3, 1e9  # beyond them all deadlines are alike


class Tries:
    """When a group may enter where it may well be in time, but little is known.

    What is believed of an entry that did not run lately comes from its profile, and from what
    others show of the machine. Where that is too slow it would never run, and so never be put
    right. Tries that keep what was hoped for follow each other sooner and sooner, until enough is
    known. One that is late, or has no time left behind its pioneer, makes the next one wait: in
    some hundreds of groups at most one deadline is missed so. Where nothing is promised to be in
    time, a try that is late has cost nothing.
    """

    def __init__(self) -> None:
        self._wait = self._left = FIRST
        self._trying = self._free = False

    @property
    def due(self) -> bool:
        """Whether the next group may try."""
        return self._left <= 0

    def asked(self, *, trying: bool, free: bool = False) -> None:
        """Whether the next group does try something, and whether nothing else is sure."""
        self._trying, self._free = trying, free
        if not trying:
            self._left = ASKED

    def ended(self, *, kept: bool) -> None:
        """A group was answered, in time and not for want of time."""
        self._left -= 1
        if not self._trying:
            return
        if kept:
            self._wait = max(SOON, int(self._wait * HURRY))
        elif not self._free:
            self._wait = min(LATE, max(MISSED, self._wait * WAIT))
        self._left, self._trying = self._wait, False


class TriesByDeadline:
    """Tries under alike deadlines: what is too slow for some may be fast enough for others."""

    def __init__(self) -> None:
        self._found: dict[int, Tries] = {}

    def under(self, deadline_ms: float) -> Tries:
        """Those under deadlines like this one."""
        bounded = min(max(deadline_ms, SHORTEST_MS), LONGEST_MS)
        return self._found.setdefault(round(math.log(bounded) / ALIKE), Tries())
