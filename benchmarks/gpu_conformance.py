"""The conformance suite and the tests marked ``gpu``, as a process of their own, by backend."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUITES = {"conformance": ("tests/conformance",), "marked gpu": ("tests", "-m", "gpu")}
OUTCOMES = ("passed", "failed", "error", "skipped")
OTHERS = "no backend named"
_LINE = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_SHOWN = 5  # names of tests that failed


def run_suite(name: str, labels: Iterable[str], seconds: float) -> dict[str, Any]:
    """Outcomes by backend of one suite, as far as it came in ``seconds``.

    Raises:
        RuntimeError: pytest is not installed, or no test ran; says what it printed last.
    """
    if find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed.")
    command = [sys.executable, "-m", "pytest", *SUITES[name], "-v", "--tb=line", "--color=no"]
    command += ["-p", "no:cacheprovider"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        whole = True
        try:
            subprocess.run(command, cwd=ROOT, stdout=printed, stderr=printed, timeout=seconds)
        except subprocess.TimeoutExpired:
            whole = False
        printed.seek(0)
        text = printed.read()
    found = outcomes(text, labels)
    if not found:
        raise RuntimeError("; ".join(text.strip().splitlines()[-3:]) or "it printed nothing.")
    return {"suite": name, "whole": whole, "backends": found}


def outcomes(text: str, labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Of pytest's verbose output: how many tests of each backend passed, failed, were skipped."""
    known = sorted(labels, key=len, reverse=True)
    counts: dict[str, Counter[str]] = {}
    wrong: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        test, outcome = match[1], match[2].lower()
        label = next((label for label in known if _names(test, label)), OTHERS)
        counts.setdefault(label, Counter())[outcome] += 1
        if outcome in ("failed", "error"):
            wrong.setdefault(label, []).append(test)
    return {
        label: {outcome: count[outcome] for outcome in OUTCOMES}
        | {"wrong": wrong.get(label, [])[:_SHOWN]}
        for label, count in counts.items()
    }


def _names(test: str, label: str) -> bool:
    """Whether a test's parameters, or its file, name a backend."""
    where, _, parameters = test.partition("[")
    in_file = Path(where.partition("::")[0]).stem == f"test_{label.partition(':')[0]}"
    named = re.search(rf"(?<![\w:]){re.escape(label)}(?![\w:])", parameters)
    return bool(named) or (in_file and not parameters)
