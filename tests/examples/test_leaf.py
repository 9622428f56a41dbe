"""The example that augments a network of torchvision runs, and is short."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest

from opa_trt.errors import BackendUnavailable
from opa_trt.supernet.legacy import require_torchvision

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "leaf.py"


@pytest.fixture(autouse=True)
def _torchvision() -> None:
    """Where CI runs it must be there."""
    try:
        require_torchvision()
    except BackendUnavailable as exc:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(exc.received)


@pytest.mark.parametrize(("name", "configurations"), [(None, 16), ("mobilenet_v2", 32)])
def test_it_says_what_every_configuration_costs(
    name: str | None,
    configurations: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *([name] if name else [])])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    first, *rows, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{name or 'resnet18'}: ")
    assert len(rows) == configurations
    macs = [float(row.split()[-3]) for row in rows]
    assert min(macs) == macs[-1] < macs[0] == max(macs)
    assert last == "the legacy network is unchanged: True"


def test_it_takes_fewer_than_30_lines() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 30
