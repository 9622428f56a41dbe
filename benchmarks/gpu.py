"""Everything that needs a GPU: conformance, latency by batch, hand-off, switch, waiting, deciding.

    python benchmarks/gpu.py --out docs/results/gpu.md

Writes the page after every part, and the report as JSON beside it, so that a run that is cut off
leaves what it had. Backends that are not installed are left out, and named; so are failures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from alternating import options, use_threads
from gpu_conformance import SUITES, run_suite
from gpu_measures import Clock, costs, handoffs, latencies, switches
from gpu_page import page
from gpu_subjects import WHOLE, Arm, Portable, arms, check
from measuring import machine, publish, wrapped
from ofa_network import PIONEER, Design, tiny

import opa_trt
from opa_trt.backends import backend_names, every_backend
from opa_trt.device import CUDA, device
from opa_trt.machine import capability, has_gpu

RESERVE = 15.0  # seconds kept for what is under way when the time ends
SUITE_SHARE = 0.6  # of the time that is left, for the first suite


@dataclass
class Trial:
    """One run: what it measures, its time, and what it has found so far."""

    chosen: argparse.Namespace
    folder: Path
    report: dict[str, Any]
    begun: float = field(default_factory=time.perf_counter)
    slowest: dict[str, float] = field(default_factory=dict)  # seconds by arm, for one subject

    @property
    def left(self) -> float:
        """Seconds."""
        return float(self.chosen.limit - (time.perf_counter() - self.begun))

    @cached_property
    def clock(self) -> Clock:
        """What times runs."""
        return Clock(device(self.chosen.device), self.chosen.seconds)

    @cached_property
    def networks(self) -> list[Portable]:
        """The network at each of its sizes."""
        return [Portable(design) for design in designs(self.chosen.quick)]

    @cached_property
    def arms(self) -> list[Arm]:
        """What networks are run on."""
        found, missing = arms(self.chosen.device)
        self.report["left_out"] |= missing
        return found

    def bundle(self, network: Portable) -> Path:
        """The network, packed."""
        path = self.folder / network.design.file_name
        if not path.exists():
            network.pack(path)
        return path

    @contextlib.contextmanager
    def noted(self, what: str) -> Iterator[None]:
        """What fails within is left out, and named with why."""
        try:
            yield
        except Exception as exc:  # whatever a vendor raises, the other parts go on
            self.report["left_out"][what] = f"{type(exc).__name__}: {str(exc).strip()[:300]}"

    def has_time(self, arm: Arm, what: str) -> bool:
        """Whether an arm's slowest subject so far would still fit in; notes where it would not."""
        if self.left - RESERVE > 1.5 * self.slowest.get(arm.label, 0.0):
            return True
        self.report["left_out"][f"{arm.name}, {what}"] = "no time was left."
        return False

    def publish(self) -> None:
        """Write the page, and the report beside it."""
        out = self.chosen.out
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(wrapped(page(self.report)), encoding="utf-8")
            report = json.dumps(self.report, indent=2) + "\n"
            out.with_suffix(".json").write_text(report, encoding="utf-8")


def designs(quick: bool) -> list[Design]:
    """The sizes of images and batches, with the smallest and the largest tail of the space."""
    if quick:
        return [tiny()]
    return [Design(224, 32, (1, 8, 32), tails=2), Design(96, 100, (1, 16, 100), tails=2)]


def main() -> None:
    """Measure part by part, and print what they gave."""
    chosen = _options()
    use_threads(chosen.threads)
    with tempfile.TemporaryDirectory(prefix="opa_trt-gpu-") as folder:
        trial = Trial(chosen, Path(folder), _report(chosen))
        if chosen.device == CUDA and not has_gpu():
            sys.stderr.write("no GPU at hand: nothing was measured.\n")
        else:
            _only_fp32()
            for name, part in PARTS.items():
                with trial.noted(name):
                    part(trial)
                trial.report["seconds"][name] = round(time.perf_counter() - trial.begun, 1)
                trial.publish()
        trial.publish()
    text = wrapped(page(trial.report))
    publish(trial.report, text, out=chosen.out, as_json=chosen.json)


def _options() -> argparse.Namespace:
    parser = options(__doc__ or "")
    parser.add_argument("--limit", type=float, default=460.0, help="seconds for everything")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each figure")
    parser.add_argument(
        "--device", choices=(CUDA, "cpu"), default=CUDA, help="cpu tries the script itself"
    )
    parser.add_argument("--without-tests", action="store_true", help="measure, and test nothing")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.seconds = 0.0
    return chosen


def _report(chosen: argparse.Namespace) -> dict[str, Any]:
    return {
        "benchmark": "gpu",
        "gpu": capability(CUDA) if chosen.device == CUDA else "the CPU, to try the script",
        "machine": machine("numpy", "torch") | {"opa_trt": opa_trt.__version__},
        "cuda": torch.version.cuda,
        "device": chosen.device,
        "quick": chosen.quick,
        "seconds": {},
        "left_out": {},
        "conformance": [],
        "costs_us": {},
        "latency": [],
        "handoff": [],
        "switch": [],
    }


def _only_fp32() -> None:
    """Eager torch must not compare in TF32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


# --- parts, the most telling first ---------------------------------------------------------------


def waiting(trial: Trial) -> None:
    """What a decision needs beside itself."""
    trial.report["costs_us"] = costs(trial.clock, trial.networks[-1].design)


def quick_latency(trial: Trial) -> None:
    """Latency of what compiles fast."""
    _latency(trial, [arm for arm in trial.arms if arm.vendor is None or arm.vendor.quick])


def slow_latency(trial: Trial) -> None:
    """Latency of what takes long to compile."""
    _latency(trial, [arm for arm in trial.arms if arm.vendor is not None and not arm.vendor.quick])


def sessions(trial: Trial) -> None:
    """Hand-off, decision and switch on every backend that compiles fast."""
    for arm in trial.arms:
        if arm.vendor is None or not arm.vendor.quick or arm.precision != "fp32":
            continue
        for network in trial.networks:
            design, tail = network.design, network.design.tail_names[-1]
            where, store = f"sessions, {design.side} px", trial.folder / "store"
            if not trial.has_time(arm, where):
                continue
            with trial.noted(f"{arm.name}, {where}"):
                path, whole = trial.bundle(network), network.subjects[f"{WHOLE}{tail}"]
                trial.report["handoff"] += handoffs(
                    trial.clock, path, whole, arm, tail, design, store
                )
                trial.report["switch"] += switches(trial.clock, path, arm, design, store)


def tests(trial: Trial) -> None:
    """The conformance suite, and the tests that need a GPU."""
    if trial.chosen.without_tests:
        return
    labels = {vendor.label for vendor in every_backend()} | set(backend_names())
    for place, suite in enumerate(SUITES):
        seconds = (trial.left - RESERVE) * (SUITE_SHARE if place == 0 else 1.0)
        with trial.noted(f"tests, {suite}"):
            trial.report["conformance"].append(run_suite(suite, labels, max(seconds, 10.0)))


def _latency(trial: Trial, wanted: list[Arm]) -> None:
    for arm in wanted:
        for network in trial.networks:
            for subject in _ordered(network):
                what = f"{subject.name}, {network.design.side} px"
                if not trial.has_time(arm, what):
                    continue
                begun = time.perf_counter()
                with trial.noted(f"{arm.name}, {what}"):
                    trial.report["latency"] += latencies(
                        trial.clock, subject, arm, network.design, check
                    )
                took = time.perf_counter() - begun
                trial.slowest[arm.label] = max(took, trial.slowest.get(arm.label, 0.0))


def _ordered(network: Portable) -> list[Any]:
    """Pioneer, the largest tail and its whole first: where time ends early, they tell the most."""
    large = network.design.tail_names[-1]
    first = [PIONEER, large, f"{WHOLE}{large}"]
    rest = [name for name in network.subjects if name not in first]
    return [network.subjects[name] for name in (*first, *rest)]


PARTS: dict[str, Callable[[Trial], None]] = {
    "waiting": waiting,
    "quick latency": quick_latency,
    "sessions": sessions,
    "tests": tests,
    "slow latency": slow_latency,
}


if __name__ == "__main__":
    main()
