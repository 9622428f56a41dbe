"""How long work tells what it is doing; the command line draws it, the default says nothing."""

from __future__ import annotations


class Progress:
    """Hears of every stage's start, advance and end. This one keeps quiet."""

    def start(self, stage: str, total: int | None = None) -> None:
        """``stage`` begins; ``total`` units of work, where that is known."""

    def advance(self, done: int, note: str = "") -> None:
        """``done`` units of the current stage are finished; ``note`` is worth a glance."""

    def finish(self, stage: str, found: str) -> None:
        """``stage`` is complete; ``found`` is one line of what it found."""
