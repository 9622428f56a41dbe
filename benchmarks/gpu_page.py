"""The page of what was found on a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alternating import TRIAL, bracketed, table
from gpu_conformance import OUTCOMES
from measuring import describe

HEAD = """# On a GPU

`python benchmarks/gpu.py --out docs/results/gpu.md`, on {gpu} (CUDA {cuda}); {machine}.

"""

NETWORK = """Once-for-all's MobileNetV3 (width 1.0), random weights, from uint8 images to 1,000
logits; the pioneer is two stages with its exit head. fp32 is fp32: TF32 is off everywhere. Times
are medians.

"""

LATENCY = """## Latency by batch

ms on the host's clock, from the call until the device is done, and after the slash between two
events on the device. Images and features are on the device already. A *whole* is the plain
sub-network of a tail without the exit head.

{rows}

"""

COSTS = """## Waiting

µs on the host's clock, from the call until the host knows.

{rows}

"""

HANDOFF = """## Pioneer, decision and tail against the whole

`session.infer` from images on the host to logits on the host (pioneer with its exit head, the real
`opa` decision, the largest tail, checks and result) against one engine of that sub-network by hand
with the same copies, in the order A B B A; brackets hold the 95 % bootstrap interval of the ratio
of medians. *Engines* has the uploads and downloads, *rest* is the runtime itself.

{rows}

"""

SWITCH = """## Changing the tail

The first group after a change of tail against the groups after it, and a control that had as much
other work without a change (`benchmarks/switch.py` says more); ms, with 95 % bootstrap intervals.

{rows}

"""

TESTS = """## Tests

{rows}

{failed}

"""

NOTHING = (
    "No GPU at hand: nothing was measured. On a CUDA machine the same command fills this page.\n"
)


def page(report: Mapping[str, Any]) -> str:
    """The report as Markdown: the parts that there are."""
    head = {
        "gpu": report["gpu"] or "a machine without a GPU",
        "cuda": report["cuda"] or "none",
        "machine": describe(report["machine"]),
    }
    text = HEAD.format(**head)
    if report["quick"]:
        text = TRIAL + text
    if not report["gpu"]:
        return text + NOTHING
    text += NETWORK
    for name, part, rows in (
        ("latency", LATENCY, _latency),
        ("handoff", HANDOFF, _handoff),
        ("switch", SWITCH, _switch),
        ("costs_us", COSTS, _costs),
    ):
        if report[name]:
            text += part.format(rows=rows(report[name]))
    if report["conformance"]:
        text += _tests(report["conformance"])
    if report["left_out"]:
        lines = [f"| {what} | {_cell(why)} |" for what, why in report["left_out"].items()]
        text += "## Left out\n\n" + "\n".join(["| what | why |", "|---|---|", *lines]) + "\n\n"
    return text


def _latency(rows: Sequence[Mapping[str, Any]]) -> str:
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    found = {(row["side"], row["subject"], row["batch"], row["arm"]): _times(row) for row in rows}
    places = list(dict.fromkeys(key[:3] for key in found))
    head = ("px", "what", "batch", *arms)
    return table(
        head,
        [
            (str(side), what, str(batch), *(found.get((side, what, batch, a), "–") for a in arms))
            for side, what, batch in places
        ],
    )


def _times(row: Mapping[str, Any]) -> str:
    return f"{row['host_ms']:.3f} / {row['device_ms']:.3f}"


def _costs(rows: Mapping[str, float]) -> str:
    return table(("what", "µs"), [(what, f"{us:.1f}") for what, us in rows.items()])


def _handoff(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("backend", "batch, px", "pairs", "ours ms", "whole ms", "ratio", "engines ms",
            "decision ms", "rest ms")  # fmt: skip
    return table(
        head,
        [
            (
                row["arm"],
                f"{row['batch']}, {row['side']}",
                str(row["pairs"]),
                f"{row['our_ms']:.3f}",
                f"{row['their_ms']:.3f}",
                bracketed([row["ratio"], *row["ratio_interval"]]),
                f"{row['engines_ms']:.3f}",
                f"{row['decision_ms']:.3f}",
                f"{row['rest_ms']:.3f}",
            )
            for row in rows
        ],
    )


def _switch(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("backend", "batch, px", "to", "rounds", "settled ms", "switched beyond settled",
            "beyond control")  # fmt: skip
    return table(
        head,
        [
            (
                row["arm"],
                f"{row['batch']}, {row['side']}",
                row["to"],
                str(row["rounds"]),
                f"{row['settled_ms']:.3f}",
                bracketed([row["extra_ms"], *row["extra_interval"]]),
                bracketed([row["beyond_control_ms"], *row["beyond_control_interval"]]),
            )
            for row in rows
        ],
    )


def _tests(suites: Sequence[Mapping[str, Any]]) -> str:
    rows, wrong = [], []
    for suite in suites:
        name = suite["suite"] if suite["whole"] else f"{suite['suite']}, cut off"
        for label, found in suite["backends"].items():
            rows.append((name, label, *(str(found[outcome]) for outcome in OUTCOMES)))
            wrong += [f"`{test}`" for test in found["wrong"]]
    failed = f"Failed, among others: {', '.join(wrong)}." if wrong else "None failed."
    return TESTS.format(rows=table(("suite", "backend", *OUTCOMES), rows), failed=failed)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
