"""All engines of a bundle on one backend at one number of threads, and the memory they take."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from opa_trt.backends import Engine
from opa_trt.backends.by_batch import ByBatch
from opa_trt.bundle import Bundle
from opa_trt.clock import Clock
from opa_trt.device import CUDA
from opa_trt.errors import ConfigError
from opa_trt.evaluate.monoliths import monolith_loader
from opa_trt.runtime import EngineLoader, open_loader
from opa_trt.store import EngineStore
from opa_trt.tree import Route, Segment

STATM = Path("/proc/self/statm")


@dataclass(frozen=True)
class Setting:
    """A way to run a bundle.

    Args:
        chosen: the backend as it was asked for: a name, or ``auto``.
        loader: of its engines; nothing is loaded yet.
    """

    chosen: str
    loader: EngineLoader

    @property
    def versions(self) -> dict[str, str]:
        """The version of every backend that runs a segment, by label."""
        shares = [share for row in self.loader.plan.values() for share in row]
        return {share.vendor.label: share.target.version for share in shares}


def open_settings(
    bundle: Bundle,
    backends: Sequence[str],
    threads: Sequence[int | None],
    *,
    store: EngineStore | None = None,
    clock: Clock | None = None,
) -> list[Setting]:
    """Every backend at every number of threads, repetitions left out; compiles nothing.

    Args:
        bundle: opened.
        backends: names, or ``auto`` for the bundle's plan.
        threads: None for the bundle's own, at most this machine's cores.
        store: where engines are kept; the user's cache by default.
        clock: what tells the time.

    Raises:
        UnknownNameError: there is no backend of a name.
        BackendUnavailable: one does not work here.
        ConfigError: one reads no form that the bundle has.
    """
    found: dict[tuple[str, int], Setting] = {}
    for count in threads:
        for name in backends:
            loader = open_loader(bundle, backend=name, threads=count, store=store, clock=clock)
            check_forms(loader)
            found.setdefault((name, loader.threads), Setting(name, loader))
    return list(found.values())


def check_forms(loader: EngineLoader) -> None:
    """Refuse backends that can compile no form of a segment, before anything is compiled.

    Raises:
        ConfigError: says which forms there are, and which are read.
    """
    for name, shares in loader.plan.items():
        forms = loader.bundle.manifest.segments[name].forms
        for vendor in (share.vendor for share in shares):
            if vendor.forms and not any(form in forms for form in vendor.forms):
                message = f"{loader.bundle.path} has its segments as {' and '.join(sorted(forms))}."
                raise ConfigError(
                    message,
                    expected=f"{' or '.join(vendor.forms)}, which backend {vendor.label} reads.",
                    remedy=f"name another backend, or build with {vendor.name} in the recipe's "
                    "compile.backends.",
                )


@dataclass(frozen=True)
class Memory:
    """What loading a set of engines took, in bytes; None where it cannot be told.

    Args:
        process: growth of the process's resident memory from just before the engines are loaded
            until just after they are verified. It holds weights, the vendor's buffers, and where
            engines had to be compiled first what the compiler left. Memory that closed engines
            gave back may be used again, and is then not counted.
        device: growth of the memory that the GPU reports as used, other processes' included.
        engines: size of the compiled engines as they are kept.
        forms: size of the portable forms that they were compiled from. TorchScript's engines are
            small because they read these weights.
    """

    process: int | None
    device: int | None
    engines: int | None
    forms: int

    def to_dict(self) -> dict[str, int | None]:
        """Plain values for JSON."""
        return {
            "process_bytes": self.process,
            "device_bytes": self.device,
            "engine_bytes": self.engines,
            "form_bytes": self.forms,
        }


@dataclass(frozen=True)
class EngineSet:
    """A setting's engines, loaded.

    Args:
        setting: whose they are.
        engines: of every segment, by its name.
        memory: what loading them took.
        engine_bytes: size of each engine as it is kept, by its segment's name; None where it is
            kept nowhere.
        monoliths: of whole routes.
        monolith_memory: what loading those took.
    """

    setting: Setting
    engines: Mapping[str, Engine]
    memory: Memory
    engine_bytes: Mapping[str, int | None]
    monoliths: Mapping[Route, Engine] = field(default_factory=dict)
    monolith_memory: Memory | None = None

    @property
    def left_out(self) -> dict[str, str]:
        """Segments that found no room, and what the vendor said."""
        return dict(self.setting.loader.left_out)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        whole = self.monolith_memory
        return {
            "chosen": self.setting.chosen,
            "versions": self.setting.versions,
            "threads": self.setting.loader.threads,
            "device": self.setting.loader.device.name,
            "memory": self.memory.to_dict(),
            "monolith_memory": None if whole is None else whole.to_dict(),
            "left_out": self.left_out,
        }


@contextmanager
def loaded(setting: Setting, joined: Mapping[Route, Segment]) -> Iterator[EngineSet]:
    """The setting's engines, verified and warm, and one for each of ``joined``; closed in the end.

    Raises:
        OpaError: what ``EngineLoader.engines`` raises.
    """
    held: list[Engine] = []
    try:
        engines, sizes, memory = _load(setting.loader, held)
        if not joined:
            yield EngineSet(setting, engines, memory, sizes)
            return
        made, more, whole = _load(monolith_loader(setting.loader, joined), held)
        wholes = {route: made[segment.name] for route, segment in joined.items()}
        yield EngineSet(setting, engines, memory, {**sizes, **more}, wholes, whole)
    finally:
        for engine in held:
            engine.close()


def _load(
    loader: EngineLoader, held: list[Engine]
) -> tuple[dict[str, Engine], dict[str, int | None], Memory]:
    """Engines and their sizes, both by segment, and what loading them took."""
    process, device = _resident(), _used(loader)
    engines = loader.engines()
    held += engines.values()
    process, device = _growth(process, _resident()), _growth(device, _used(loader))
    sizes = {name: _engine_bytes(loader, engine) for name, engine in engines.items()}
    forms = sum(_form_bytes(loader, name) for name in engines)
    return engines, sizes, Memory(process, device, total(sizes.values()), forms)


def total(sizes: Iterable[int | None]) -> int | None:
    """The sum of sizes, None if one is not known."""
    found = list(sizes)
    known = [size for size in found if size is not None]
    return sum(known) if len(known) == len(found) else None


def _growth(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _engine_bytes(loader: EngineLoader, engine: Engine) -> int | None:
    """Size of an engine as it is kept in the bundle or the store."""
    parts = engine.parts if isinstance(engine, ByBatch) else (engine,)
    return total(_kept_bytes(loader, part.key) for part in parts)


def _kept_bytes(loader: EngineLoader, key: str) -> int | None:
    if not key:
        return None
    manifest = loader.bundle.manifest
    for entry in manifest.engines:
        if entry.key == key:
            return manifest.files[entry.file].size
    data = loader.store.engine(key)
    return None if data is None else len(data)


def _form_bytes(loader: EngineLoader, name: str) -> int:
    segment = loader.bundle.segment(name)
    forms = {share.vendor.form(segment) for share in loader.plan[name]}
    return sum(len(segment.forms[form]) for form in forms if form)


def _resident() -> int | None:
    """Bytes of the process in memory, where the system tells."""
    gc.collect()
    try:
        pages = int(STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _used(loader: EngineLoader) -> int | None:
    """Bytes of the GPU that are in use, where the engines run there."""
    if loader.device.name != CUDA:
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free
