"""What ``opa-trt doctor BUNDLE`` prints."""

from __future__ import annotations

from typing import Any

from opa_trt.evaluate.doctor import Diagnosis, gains
from opa_trt_cli.console import say, say_table


def say_diagnosis(found: Diagnosis) -> None:
    """Spread, hand-off, memory and outlook, each in plain words; the verdict last."""
    _say_spread(found)
    _say_handoff(found)
    _say_memory(found.where)
    _say_outlook(found)
    say(f"\n{found.verdict}")


def _say_spread(found: Diagnosis) -> None:
    say("What there is to choose between, pioneer and tail (median ms, accuracy at build):")
    say_table(
        (
            ("batch", "right"),
            ("fastest", "left"),
            ("ms", "right"),
            ("right", "right"),
            ("largest", "left"),
            ("ms", "right"),
            ("right", "right"),
            ("ratio", "right"),
        ),
        (
            (
                str(each.batch),
                each.fastest,
                f"{each.fastest_ms:.3g}",
                f"{each.fastest_accuracy:.1%}",
                each.largest,
                f"{each.largest_ms:.3g}",
                f"{each.largest_accuracy:.1%}",
                f"{each.ratio:.2f}",
            )
            for each in found.spreads
        ),
    )


def _say_handoff(found: Diagnosis) -> None:
    if not found.handoffs:
        say(f"\nThe cost of handing on is not known: {found.no_handoff}")
        return
    say("\nWhat cutting and deciding cost: a group by the session, the same network in one piece:")
    say_table(
        (
            ("batch", "right"),
            ("route", "left"),
            ("session ms", "right"),
            ("one piece ms", "right"),
            ("ratio [95 %]", "right"),
            ("beside engines ms", "right"),
        ),
        (
            (
                str(each.ratio.route.batch),
                each.ratio.route.name,
                f"{each.ratio.route.at(0.5):.3g}",
                f"{each.whole_ms:.3g}",
                f"{each.ratio.ratio:.2f} [{each.ratio.low:.2f}, {each.ratio.high:.2f}]",
                f"{each.beside_ms:.3f}",
            )
            for each in sorted(found.handoffs, key=lambda each: each.ratio.route.batch)
        ),
    )


def _say_memory(where: Any) -> None:
    memory, whole = where["memory"], where["monolith_memory"]
    text = f"\n{where['engines']} engines"
    text += f", {_size(memory['engine_bytes'])} as they are kept" if memory["engine_bytes"] else ""
    text += f", portable forms {_size(memory['form_bytes'])}"
    if memory["process_bytes"] is not None:
        text += f"; loading them took {_size(memory['process_bytes'])}"
    if memory["device_bytes"] is not None:
        text += f" and {_size(memory['device_bytes'])} on the GPU"
    if whole and whole["process_bytes"] is not None and where["monoliths"]:
        each = whole["process_bytes"] / where["monoliths"]
        text += f", a network in one piece {_size(each)}"
    say(f"{text}.")


def _say_outlook(found: Diagnosis) -> None:
    if found.equal_macs is not None:
        say(
            f"Image by image, at equal MACs, the build measured {100 * found.equal_macs:+.1f} "
            "points on images that nothing was fitted on."
        )
    if not found.points:
        return
    say(
        "\nWhat may be expected of opa_split, without load, content as mixed as at build "
        "(a static route is charged its engines alone):"
    )
    say_table(
        (
            ("batch", "right"),
            ("deadline ms", "right"),
            ("best static route", "left"),
            ("right", "right"),
            ("opa_split", "right"),
            ("gain, points", "right"),
            ("sends", "left"),
        ),
        (
            (
                str(each.batch),
                f"{each.deadline_ms:.3g}",
                each.static,
                f"{each.static_accuracy:.1%}",
                f"{each.accuracy:.1%}",
                f"{100 * each.gain:+.1f}",
                f"{each.sent:.0%} to {each.tail}" if each.tail else "none",
            )
            for each in found.points
        ),
    )
    for batch, gain in gains(found.points).items():
        say(
            f"batch {batch}: {100 * gain:+.1f} points in the mean over these deadlines; "
            f"{100 * found.over_range[batch]:+.1f} over one static route that meets them all"
        )


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
