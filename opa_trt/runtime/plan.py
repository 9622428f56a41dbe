"""Which backend runs which segment here, for which batch sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from opa_trt.backends import Backend, backend, backend_names, every_backend
from opa_trt.backends.base import FP32
from opa_trt.bundle import Bundle, Manifest
from opa_trt.errors import BackendUnavailable, ConfigError, OpaError, UntrustedForm
from opa_trt.tree import PlanEntry, Target

AUTO = "auto"


@dataclass(frozen=True)
class Share:
    """A backend, and its target for a range of batch sizes of one segment."""

    vendor: Backend
    target: Target


Plan = Mapping[str, tuple[Share, ...]]


def make_plan(
    bundle: Bundle,
    chosen: str | Backend,
    *,
    threads: int,
    precision: str | None = None,
    trusted: bool = True,
) -> Plan:
    """Every segment's shares.

    Args:
        bundle: opened.
        chosen: a backend, the name of one, or ``auto``: what the build found fastest, or else the
            first that works here.
        threads: of every target on a CPU.
        precision: of every target; by default what the bundle's engines of that backend have.
        trusted: whether ``auto`` may take backends whose engines can execute code.

    Raises:
        UnknownNameError: there is no backend of that name.
        BackendUnavailable: it does not work here; says what installs it.
        ConfigError: a precision that it lacks, or engines on different devices.
    """
    manifest = bundle.manifest
    if chosen == AUTO and (planned := _as_built(manifest, trusted)) is not None:
        entries = {name: _with(precision, planned[name]) for name in manifest.segments}
    else:
        vendor = chosen if isinstance(chosen, Backend) else _one(bundle, chosen, trusted)
        vendor.require()
        wanted = precision or _built_precision(manifest, vendor)
        whole = PlanEntry(vendor.label, wanted, 1, manifest.max_batch)
        entries = {name: [(vendor, whole)] for name in manifest.segments}
    plan = {
        name: tuple(_share(vendor, entry, threads) for vendor, entry in rows)
        for name, rows in entries.items()
    }
    check_one_device(plan)
    return plan


def device_of(plan: Plan) -> str:
    """The name of the device that every share is on."""
    return next(iter(plan.values()))[0].target.device


def check_one_device(plan: Plan) -> None:
    """Refuse a plan whose engines would not see each other's tensors.

    Raises:
        ConfigError: it names several devices.
    """
    devices = sorted({share.target.device for shares in plan.values() for share in shares})
    if len(devices) > 1:
        message = f"a plan with engines on {' and '.join(devices)}."
        raise ConfigError(message, expected="all on one device.", remedy="name one backend.")


def _share(vendor: Backend, entry: PlanEntry, threads: int) -> Share:
    target = vendor.target(
        min_batch=entry.min_batch,
        max_batch=entry.max_batch,
        threads=threads,
        precision=entry.precision,
    )
    return Share(vendor, target)


def _as_built(
    manifest: Manifest, trusted: bool
) -> dict[str, list[tuple[Backend, PlanEntry]]] | None:
    """The manifest's plan, if everything that it names works here and may be used."""
    labels = {entry.backend for entries in manifest.plan.values() for entry in entries}
    vendors = {label: _usable(label, trusted) for label in labels}
    known = {label: vendor for label, vendor in vendors.items() if vendor is not None}
    if known.keys() != labels:
        return None
    return {
        name: [(known[entry.backend], entry) for entry in entries]
        for name, entries in manifest.plan.items()
    }


def _usable(label: str, trusted: bool) -> Backend | None:
    """The backend of that label, or None: the build machine may have had one that we lack."""
    if label.partition(":")[0] not in backend_names():
        return None
    try:
        found = backend(label)
    except OpaError:
        return None
    return found if found.availability() and (trusted or not found.executes_code) else None


def _one(bundle: Bundle, name: str, trusted: bool) -> Backend:
    """The backend called ``name``; for ``auto`` the first that works and reads the bundle."""
    if name != AUTO:
        return backend(name)
    forms = [set(entry.forms) for entry in bundle.manifest.segments.values()]
    for found in every_backend():
        reads = not found.forms or all(own.intersection(found.forms) for own in forms)
        allowed = trusted or not found.executes_code
        if reads and allowed and found.quick and found.availability():
            return found
    tried = ", ".join(found.label for found in every_backend())
    if not trusted:
        message = f"{bundle.path} is not trusted, and no backend here runs it without its code."
        raise UntrustedForm(
            message,
            expected="openvino, onnxruntime or tensorrt, which read ONNX.",
            remedy="install one (`opa-trt doctor`), or, if you built it: load(…, trusted=True), "
            "or leave out --untrusted.",
        )
    message = f"none of {tried} works here."
    raise BackendUnavailable(message, remedy="see `opa-trt doctor`.")


def _built_precision(manifest: Manifest, vendor: Backend) -> str:
    found = [e.target.precision for e in manifest.engines if e.target.backend == vendor.name]
    return found[0] if found and found[0] in vendor.precisions else FP32


def _with(
    precision: str | None, rows: list[tuple[Backend, PlanEntry]]
) -> list[tuple[Backend, PlanEntry]]:
    if precision is None:
        return rows
    return [(vendor, replace(entry, precision=precision)) for vendor, entry in rows]
