"""How long a bundle takes to open and how much memory it needs, by backend and number of tails.

    python benchmarks/load.py --out docs/results/load.md

Every figure is a fresh process's. Cold: nothing is in the store, so every engine is compiled,
compared with its canary and profiled. Warm: the store has it all. The peer opens the same
sub-networks as whole networks, one by one, by plain calls of the vendor.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = (1, 2, 4, 8, 12)  # of tails
REPEATS = 3  # of warm and of the peer, with most tails
BACKENDS = ("openvino", "onnxruntime", "torchscript")
TIMEOUT = 600  # seconds for one process
SUFFIX = {"openvino": "onnx", "onnxruntime": "onnx", "torchscript": "pt"}


def main() -> None:
    """Pack bundles of every size, open them in processes of their own, print what they took."""
    if len(sys.argv) == 3 and sys.argv[1] == "--child":
        sys.stdout.write(json.dumps(child(json.loads(sys.argv[2]))))
        return
    from alternating import finish, scratch, use_threads, versions, working

    chosen = _options()
    use_threads(chosen.threads)
    names, missing = working(chosen.backends)
    with scratch(chosen.folder) as folder:
        rows = measure(Path(folder), names, chosen)
    finish(summary(rows) | {"left_out": missing}, page, chosen, versions(names))


def _options() -> argparse.Namespace:
    from alternating import options, with_backends, with_folder

    parser = with_backends(with_folder(options(__doc__ or "")), BACKENDS)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="of tails")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="with most tails")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.counts, chosen.repeats = [1], 1
    return chosen


# --- in a process of its own ----------------------------------------------------------------------


def child(task: dict[str, Any]) -> dict[str, float]:
    """Open what ``task`` says; seconds to import and to open, and the peak of memory in MB."""
    begun = time.perf_counter()
    opener = {"bundle": _bundle, "whole": _whole}[task["what"]](task)
    imported = time.perf_counter()
    kept = opener()
    opened = time.perf_counter()
    found = {"import_s": imported - begun, "open_s": opened - imported, "peak_mb": peak_mb()}
    del kept
    return found


def _bundle(task: dict[str, Any]) -> Callable[[], Any]:
    import opa_trt
    from opa_trt.store import EngineStore

    store = EngineStore(Path(task["store"]))
    return lambda: opa_trt.load(
        task["path"], backend=task["backend"], threads=task["threads"], store=store
    )


def _whole(task: dict[str, Any]) -> Callable[[], Any]:
    """Plain calls of the vendor, for one file after the other."""
    threads, files = task["threads"], task["files"]
    if task["backend"] == "openvino":
        import openvino as ov

        core = ov.Core()
        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        return lambda: [core.compile_model(file, "CPU", config) for file in files]
    if task["backend"] == "onnxruntime":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"]
        return lambda: [ort.InferenceSession(file, options, providers) for file in files]
    import torch

    torch.set_num_threads(threads)
    return lambda: [torch.jit.optimize_for_inference(torch.jit.load(file).eval()) for file in files]


def peak_mb() -> float:
    """The peak of this process's resident memory.

    Not ``ru_maxrss``, which a process takes over from the one that started it.
    """
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


# --- in the process that measures -----------------------------------------------------------------


def measure(folder: Path, names: list[str], chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for every number of tails and backend."""
    from ofa_network import Design, Network, Parts, tiny

    most = max(chosen.counts)
    design = tiny(tails=most) if chosen.quick else Design(96, 16, (1, 16), most)
    parts = Parts(design)
    parts.pack(folder / "all.opa")
    whole = Network(design, folder / "all.opa")
    for name in design.tail_names:
        segment = whole.monolith(name)
        for form, suffix in (("onnx", "onnx"), ("torchscript", "pt")):
            (folder / f"{name}.{suffix}").write_bytes(segment.forms[form])
    rows = []
    for count in chosen.counts:
        tails = spread(design.tail_names, count)
        path = folder / f"{count}.opa"
        parts.pack(path, tails)
        repeats = chosen.repeats if count == most else 1
        rows += [row_of(folder, path, tails, name, chosen.threads, repeats) for name in names]
    return rows


def spread(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """So many of ``names``, evenly from the first to the last; one is the last."""
    places = np.linspace(len(names) - 1, 0, count).round().astype(int)[::-1]
    return tuple(names[place] for place in places)


def row_of(
    folder: Path, path: Path, tails: tuple[str, ...], name: str, threads: int, repeats: int
) -> dict[str, Any]:
    """Cold once; then warm and the peer in turns."""
    store = folder / f"store-{path.stem}-{name}"
    files = [str(folder / f"{tail}.{SUFFIX[name]}") for tail in tails]
    facts = {"backend": name, "threads": threads}
    ours = facts | {"what": "bundle", "path": str(path), "store": str(store)}
    theirs = facts | {"what": "whole", "files": files}
    cold = fresh(ours)
    warm, peer = [], []
    for place in range(repeats):
        order = [(warm, ours), (peer, theirs)][:: 1 if place % 2 == 0 else -1]
        for kept, task in order:
            kept.append(fresh(task))
    return {
        "backend": name,
        "tails": len(tails),
        "repeats": repeats,
        "bundle_mb": sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6,
        "cold_s": cold["open_s"],
        "cold_peak_mb": cold["peak_mb"],
        **{f"warm_{key}": _median(warm, key) for key in cold},
        **{f"peer_{key}": _median(peer, key) for key in cold},
    }


def fresh(task: dict[str, Any]) -> dict[str, float]:
    """``child`` in a new process."""
    command = [sys.executable, "-W", "ignore", __file__, "--child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{task['what']} on {task['backend']} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _median(found: list[dict[str, float]], key: str) -> float:
    return float(np.median([values[key] for values in found]))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All rows; there is no goal but to know."""
    ratios = {
        row["backend"]: row["warm_open_s"] / row["peer_open_s"]
        for row in sorted(rows, key=lambda row: row["tails"])
    }
    return {
        "benchmark": "load",
        "peer": "opening the same sub-networks one by one by plain calls of the vendor",
        "rows": rows,
        "ratio": ratios,  # warm, with most tails
        "goal": None,
        "met": None,
    }


PAGE = """# Opening a bundle

`python benchmarks/load.py --out docs/results/load.md`, on {machine}, {threads} threads.

Once-for-all's MobileNetV3 (width 1.0) at 96 px, random weights, batches up to 16; every figure is a
fresh process's, seconds without imports. *cold*: nothing in the store, so that every engine is
compiled, compared with its canary and profiled. *warm*: the store has it all; every file of the
bundle is still hashed. *plain* is {peer}: a whole network for each tail, without checks, canary and
profiles. Memory is the peak of the process, imports included. With most tails, warm and plain are
medians of {repeats} processes in turns; with fewer, one each.

{rows}

Warm over plain, with most tails: {ratios}. {left_out}
"""


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    from alternating import table
    from measuring import describe

    head = ("backend", "tails", "bundle MB", "cold s", "warm s", "plain s",
            "cold peak MB", "warm peak MB", "plain peak MB")  # fmt: skip
    rows = sorted(report["rows"], key=lambda row: (row["backend"], row["tails"]))
    left_out = [f"{name} is left out: {why}" for name, why in report["left_out"].items()]
    values = report | {
        "machine": describe(report["machine"]),
        "rows": table(head, [_cells(row) for row in rows]),
        "repeats": max(row["repeats"] for row in rows),
        "ratios": ", ".join(f"{name} {value:.2f}" for name, value in report["ratio"].items()),
        "left_out": " ".join(left_out),
    }
    return PAGE.format(**values)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["backend"],
        str(row["tails"]),
        f"{row['bundle_mb']:.0f}",
        *(f"{row[key]:.2f}" for key in ("cold_s", "warm_open_s", "peer_open_s")),
        *(f"{row[key]:.0f}" for key in ("cold_peak_mb", "warm_peak_mb", "peer_peak_mb")),
    ]


if __name__ == "__main__":
    main()
