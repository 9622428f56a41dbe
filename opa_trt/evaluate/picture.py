"""A stream as a picture: content, chosen tail, latency against the deadline, accuracy."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from opa_trt import atomic
from opa_trt.errors import BackendUnavailable
from opa_trt.evaluate.stream import Arm, StreamGroup

COLOURS = {"opa": "#1b6ca8", "static-small": "#8a8a8a", "static-large": "#d1495b"}
SMOOTH = 5


def draw_stream(
    path: Path,
    stream: Sequence[StreamGroup],
    arms: Sequence[Arm],
    nodes: Sequence[str],
    title: str,
) -> None:
    """Save a PNG with one column a deadline, and time (groups) on the horizontal axis.

    Args:
        path: where to.
        stream: the groups.
        arms: every policy under every deadline; ``opa`` among them.
        nodes: the nodes an answer may come from, fastest first.
        title: above everything.

    Raises:
        BackendUnavailable: matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    deadlines = list(dict.fromkeys(arm.deadline_ms for arm in arms))
    figure, axes = plt.subplots(
        4,
        len(deadlines),
        figsize=(5.2 * len(deadlines), 8.4),
        sharex=True,
        sharey="row",
        squeeze=False,
        gridspec_kw={"height_ratios": [0.5, 2, 2, 2], "hspace": 0.12, "wspace": 0.06},
        layout="constrained",
    )
    for column, deadline in enumerate(deadlines):
        own = [arm for arm in arms if arm.deadline_ms == deadline]
        _content(axes[0][column], stream)
        axes[0][column].set_title(f"deadline {deadline:g} ms", fontsize=11)
        _nodes(axes[1][column], own, nodes)
        _latency(axes[2][column], own, deadline)
        _accuracy(axes[3][column], own)
        axes[3][column].set_xlabel("group (100 images each)" if _hundreds(stream) else "group")
    slowest = max(answer.ms for arm in arms for answer in arm.answers)
    axes[2][0].set_ylim(0, 1.08 * max(slowest, *deadlines))
    for row, label in enumerate(("content", "who answers", "latency, ms", "accuracy, %")):
        axes[row][0].set_ylabel(label)
    handles, labels = axes[3][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title, fontsize=12)
    save_png(figure, path)


def require_matplotlib() -> None:
    """Nothing, where pictures can be drawn.

    Raises:
        BackendUnavailable: matplotlib is missing; says what installs it.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as exc:
        message = "pictures need matplotlib, which is not installed."
        raise BackendUnavailable(message, remedy="pip install 'opa-trt[plots]'") from exc


def save_png(figure: Any, path: Path) -> None:
    """Save a figure of ``pyplot``, and close it."""
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    atomic.write_bytes(path, buffer.getvalue())


def _content(axis: Any, stream: Sequence[StreamGroup]) -> None:
    """A strip: darker is harder, and the name of what is done to the images."""
    axis.imshow(
        [[group.severity for group in stream]],
        aspect="auto",
        cmap="Oranges",
        vmin=0,
        vmax=4,
        extent=(-0.5, len(stream) - 0.5, 0, 1),
    )
    start = 0
    for family, members in groupby(group.family for group in stream):
        length = len(list(members))
        if length >= len(stream) / 20:
            label = family.replace("_", " ")
            axis.text(start + length / 2 - 0.5, 0.5, label, ha="center", va="center", fontsize=7)
        start += length
    axis.set_yticks([])


def _nodes(axis: Any, arms: Sequence[Arm], nodes: Sequence[str]) -> None:
    heights = {name: i for i, name in enumerate(nodes)}
    for arm in arms:
        line = [heights[answer.node] for answer in arm.answers]
        axis.step(range(len(line)), line, where="mid", color=_colour(arm), lw=_width(arm))
    axis.set_yticks(range(len(nodes)), nodes, fontsize=7)
    axis.grid(axis="y", lw=0.3)


def _latency(axis: Any, arms: Sequence[Arm], deadline: float) -> None:
    for arm in arms:
        axis.plot([a.ms for a in arm.answers], color=_colour(arm), lw=_width(arm) * 0.8)
    axis.axhline(deadline, color="black", ls="--", lw=1)
    axis.text(0, deadline, " deadline", va="bottom", fontsize=7)
    axis.grid(axis="y", lw=0.3)


def _accuracy(axis: Any, arms: Sequence[Arm]) -> None:
    for arm in arms:
        values = 100 * np.array([answer.accuracy for answer in arm.answers])
        axis.plot(_smooth(values), color=_colour(arm), lw=_width(arm), label=arm.label)
    axis.grid(axis="y", lw=0.3)


def _smooth(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Mean over ``SMOOTH`` neighbours, fewer at the ends."""
    kernel = np.ones(min(SMOOTH, len(values)))
    norm = np.convolve(np.ones(len(values)), kernel, "same")
    result: np.ndarray[Any, Any] = np.convolve(values, kernel, "same") / norm
    return result


def _colour(arm: Arm) -> str:
    return COLOURS.get(arm.label, "#3a7d44")


def _width(arm: Arm) -> float:
    return 1.8 if arm.policy == "opa" else 1.0


def _hundreds(stream: Sequence[StreamGroup]) -> bool:
    return all(len(group.labels) == 100 for group in stream)
