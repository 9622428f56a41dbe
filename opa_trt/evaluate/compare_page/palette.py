"""One hue, mark and line for each arm, the same in all plots and tables.

The hues keep apart for readers who are blind to a colour; the marks and dashes do without hues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

Dash: TypeAlias = str | tuple[float, tuple[float, ...]]

INK, FAINT, GRID, PAPER = "#1f2430", "#5c6470", "#d5d9df", "#fefefe"
INK_DARK, FAINT_DARK, GRID_DARK, PAPER_DARK = "#e4e7eb", "#9aa3ae", "#363c45", "#15181d"
GOOD, NEUTRAL, BAD = "#0b7a75", "#b9bfc7", "#b3401f"
GOOD_DARK, NEUTRAL_DARK, BAD_DARK = "#4cc5bd", "#555d68", "#f08a63"


@dataclass(frozen=True)
class Look:
    """How an arm is drawn.

    Args:
        light, dark: its hue on paper and on a dark ground.
        marker: as matplotlib names it.
        dash: of its lines.
        weight: line width in points.
    """

    light: str
    dark: str
    marker: str
    dash: Dash = "-"
    weight: float = 1.3


LOOKS = {
    "opa_split": Look("#0072b2", "#4db2f0", "o", "-", 2.2),
    "opa": Look("#3aa5d8", "#9adcff", "s", "-", 1.8),
    "dynamic_ofa": Look("#d55e00", "#ff8c3a", "^"),
    "branchynet": Look("#009e73", "#3fd0a4", "v"),
    "cascade": Look("#c2669a", "#ec9ccb", "D"),
    "static_best": Look("#b98500", "#eec04d", "P"),
    "static_largest": Look("#6b4423", "#cda27c", "X"),
    "oracle": Look("#4a4f57", "#c3c8cf", "*", (0, (1, 1.5)), 1.1),
    "oracle_cv": Look("#777e88", "#a2a9b3", "h", (0, (4, 1.5)), 1.1),
    "random": Look("#9aa0a8", "#7c848f", "x", (0, (5, 2, 1, 2)), 1.1),
}
OTHER = Look("#8a6fb0", "#bda5e0", ".", "--")
NAMES = {
    "opa_split": "opa_split (ours)",
    "opa": "opa (ours)",
    "dynamic_ofa": "Dynamic-OFA",
    "branchynet": "BranchyNet",
    "cascade": "cascade",
    "static_best": "best static route",
    "static_largest": "largest network",
    "oracle": "oracle",
    "oracle_cv": "oracle, cross-validated",
    "random": "random",
}


def look(arm: str) -> Look:
    """An arm's look; one look for all that have none of their own."""
    return LOOKS.get(arm, OTHER)


def name(arm: str) -> str:
    """An arm's name for people."""
    return NAMES.get(arm, arm)


def line_style(arm: str, *, markers: bool = True) -> dict[str, Any]:
    """Arguments of matplotlib's ``plot``."""
    found = look(arm)
    return {
        "color": found.light,
        "lw": found.weight,
        "ls": found.dash,
        "marker": found.marker if markers else "",
        "ms": 6.5 if found.marker in "*xhX" else 5,
        "zorder": 3 + found.weight,
    }


def themed() -> dict[str, tuple[str, str]]:
    """By the hue that is drawn: the name of its variable on the page, and its dark form."""
    fixed = {
        INK: ("ink", INK_DARK),
        FAINT: ("faint", FAINT_DARK),
        GRID: ("grid", GRID_DARK),
        PAPER: ("paper", PAPER_DARK),
        GOOD: ("good", GOOD_DARK),
        NEUTRAL: ("neutral", NEUTRAL_DARK),
        BAD: ("bad", BAD_DARK),
        OTHER.light: ("arm-other", OTHER.dark),
    }
    arms = {each.light: (f"arm-{arm}", each.dark) for arm, each in LOOKS.items()}
    return fixed | arms


def variable(arm: str) -> str:
    """The name of an arm's hue on the page."""
    return f"--arm-{arm}" if arm in LOOKS else "--arm-other"
