"""A background application: a three-layer network that is computed again and again.

What ``opa_trt.evaluate.background`` starts, as a script. It needs nothing of this package, and
torch only for a GPU, so that it is under way in a fraction of a second. It ends by itself at its
time limit, on SIGTERM, or when the process that started it has gone; and if it hangs, the system's
alarm ends it.

It writes ``ready`` when its first run is done, and at its end how many runs followed in how many
seconds.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

ROWS = 1000  # a run's batch
WIDTHS = (47, 124, 124, 124, 1)  # OPA's predictor: estimated accuracy and arch to accuracy
READY = "ready"
POLL = 0.2  # seconds between two looks at the parent
STARTING = 60  # seconds that the first run may take
GRACE = 5  # seconds over its limit, after which a process is held to hang


def main(kind: str, seconds: float, parent: int) -> None:
    """Compute for ``seconds``, as long as ``parent`` (its process id) lives."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(seconds) + STARTING + GRACE)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    run = {"cpu": _on_cpu, "cuda": _on_gpu}[kind]()
    run()
    _say(READY)
    begun, runs = time.monotonic(), 0
    while not stopped.is_set() and time.monotonic() - begun < seconds:
        run()
        runs += 1
    _say(f"{runs} {time.monotonic() - begun:.3f}")


def _watch(parent: int) -> None:
    """End this process, whatever it is doing, once another one than ``parent`` is its parent."""
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)


def _on_cpu() -> Callable[[], Any]:
    import numpy as np

    draw = np.random.default_rng(0)
    rows = draw.random((ROWS, WIDTHS[0]), dtype=np.float32)
    layers = [draw.standard_normal(s, dtype=np.float32) / s[0] ** 0.5 for s in pairwise(WIDTHS)]

    def run() -> Any:
        out = rows
        for weight in layers[:-1]:
            out = np.maximum(out @ weight, 0)
        return out @ layers[-1]

    return run


def _on_gpu() -> Callable[[], Any]:
    import torch

    torch.manual_seed(0)
    rows = torch.rand(ROWS, WIDTHS[0], device="cuda")
    layers = [torch.randn(s, device="cuda") / s[0] ** 0.5 for s in pairwise(WIDTHS)]

    def run() -> Any:
        out = rows
        for weight in layers[:-1]:
            out = torch.relu(out @ weight)
        return (out @ layers[-1]).cpu()

    return run


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
