"""Several writers of one store: each finds a whole engine or none, and nothing is left over."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from opa_trt import atomic
from opa_trt.store import EngineStore


def test_threads_that_put_at_once_leave_one_whole_engine(store: EngineStore, seal: Any) -> None:
    engines = [seal(bytes([i]) * 50_000) for i in range(8)]
    barrier, seen = threading.Barrier(len(engines)), []

    def put(data: bytes) -> None:
        barrier.wait()
        store.put_engine("k", data)
        seen.append(store.engine("k"))

    workers = [threading.Thread(target=put, args=(data,)) for data in engines]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert set(seen) <= set(engines)
    assert store.engine("k") in engines
    assert [path.name for path in (store.root / "engines").iterdir()] == ["k.engine"]


def test_processes_that_put_at_once_leave_one_whole_engine(
    store: EngineStore, seal: Any, tmp_path: Path
) -> None:
    code = (  # the file by itself: importing the package would take longer than the test
        "import runpy, sys; from pathlib import Path\n"
        "write_bytes = runpy.run_path(sys.argv[3])['write_bytes']\n"
        "for _ in range(20):\n"
        "    write_bytes(Path(sys.argv[1]), Path(sys.argv[2]).read_bytes())\n"
    )
    engines = {name: seal(name.encode() * 50_000) for name in ("a", "b", "first")}
    for name, data in engines.items():
        (tmp_path / name).write_bytes(data)
    store.put_engine("k", engines["first"])
    (path,) = (store.root / "engines").iterdir()
    running = [
        subprocess.Popen([sys.executable, "-c", code, path, tmp_path / name, atomic.__file__])
        for name in "ab"
    ]
    found = set()
    while any(process.poll() is None for process in running):
        found.add(store.engine("k"))
    assert [process.returncode for process in running] == [0, 0]
    assert found | {store.engine("k")} <= set(engines.values())
    assert [path.name for path in (store.root / "engines").iterdir()] == ["k.engine"]


def _fill(root: Path, own: bytes, limit: int, turn: int) -> None:
    """Puts, finds, lists and prunes, where another process does the same."""
    store = EngineStore(root, limit_bytes=limit)
    for i in range(40):
        key = f"k{(i * (turn + 1)) % 7}"
        store.put_engine(key, own)
        store.mark_verified(key, "canary", 0.0)
        found = store.engine(f"k{i % 7}")
        assert found is None or len(found) == len(own)
        if i % 10 == turn:
            store.entries()
            store.prune()
        if i % 9 == turn:
            store.drop_engine(f"k{i % 5}")
    assert store._told == set()


def test_processes_that_fill_and_evict_at_once_keep_to_the_limit(
    store: EngineStore, seal: Any
) -> None:
    engines = [seal(name * 2000) for name in (b"a", b"b")]
    limit = 3 * len(engines[0])
    fork = multiprocessing.get_context("fork")  # a fresh interpreter takes longer than the test
    running = [
        fork.Process(target=_fill, args=(store.root, data, limit, turn))
        for turn, data in enumerate(engines)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0]
    entries = EngineStore(store.root, limit_bytes=limit).entries()
    assert sum(entry.bytes for entry in entries) <= limit
    assert [entry.damage for entry in entries] == [""] * len(entries)
    assert not list(store.root.rglob(".*"))
