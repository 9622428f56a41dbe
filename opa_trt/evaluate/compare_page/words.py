"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NONE = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 1 in per cent."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def points(value: float | None) -> str:
    """A difference of shares in points, signed."""
    if value is None:
        return NONE
    shown = f"{100 * value:+.1f}"
    return {"+0.0": "0.0", "-0.0": "0.0"}.get(shown, shown).replace("-", "−")


def ms(value: float | None) -> str:
    """Milliseconds at three figures, without the unit."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def tick(value: float, place: float = 0) -> str:
    """Of an axis of shares, in per cent or points; ``place`` is matplotlib's own."""
    return f"{100 * value:g}".replace("-", "−")


def count(value: float | None) -> str:
    """A whole number with commas."""
    return NONE if value is None else f"{value:,.0f}"


def percent_interval(found: Mapping[str, Any] | None) -> str:
    """``84.0 % [83.0, 85.0]``."""
    if found is None:
        return NONE
    low, high = found["low"], found["high"]
    ends = "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"
    return percent(found["mean"]) + ends


def points_interval(found: Mapping[str, Any] | None) -> str:
    """``+1.2 [+0.4, +2.0]``."""
    if found is None:
        return NONE
    return points(found["mean"]) + ends(found["low"], found["high"])


def ends(low: float | None, high: float | None) -> str:
    """``[+0.4, +2.0]`` in points with a space before it; nothing where they are not known."""
    return "" if low is None or high is None else f" [{points(low)}, {points(high)}]"


def applications(load: int | None) -> str:
    """A load for people."""
    if load is None:
        return "all loads"
    if load == 0:
        return "idle"
    return "1 application" if load == 1 else f"{load} applications"


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def verdict(met: bool | None) -> str:
    """Of a goal."""
    return "not resolved" if met is None else "met" if met else "not met"


def figure(value: float | None, unit: str) -> str:
    """A goal's figure in its unit."""
    if value is None:
        return NONE
    return f"{points(value)} points" if unit == "points" else percent(value)
