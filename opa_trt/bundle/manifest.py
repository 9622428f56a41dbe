"""What ``manifest.json`` says: a strict schema, read and written as frozen values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from opa_trt.errors import BundleCorrupt, BundleVersionError, ConfigError
from opa_trt.tree import Node, PlanEntry, Target, TensorSpec, Tree

FORMAT = "opa_trt.bundle"
FORMAT_VERSION = 2
_PLAIN: dict[str, type[object]] = {
    "name": str,
    "version": str,
    "recipe": dict,
    "recipe_sha256": str,
    "backend": str,
    "max_batch": int,
    "threads": int,
}


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class ImageSpec:
    """What ``infer`` takes: side in pixels, ``uint8`` or ``float32``, and the normalisation."""

    size: int
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class SegmentEntry:
    """One segment: its tensors, the hash of its graph and weights, its portable forms' files."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    content: str
    forms: Mapping[str, str]


@dataclass(frozen=True)
class EngineEntry:
    """One compiled engine: whose, for what target, under which key, in which file."""

    segment: str
    target: Target
    key: str
    file: str


@dataclass(frozen=True)
class Manifest:
    """The whole of ``manifest.json``.

    Args:
        name: of the recipe.
        version: of opa_trt that wrote it.
        recipe: what it was built from, in full.
        recipe_sha256: of that recipe.
        classes: names, in the order of the logits.
        images: what comes in.
        nodes: the tree.
        segments: by name.
        engines: compiled on the build machine.
        backend: what the build found fastest there, over all segments.
        plan: what it found fastest for each segment, by batch size, ascending.
        max_batch: largest batch of any engine.
        threads: that the build compiled for.
        buckets: batch sizes that latency profiles measure.
        files: every other file of the bundle.
        report: what each stage of the build found.
    """

    name: str
    version: str
    recipe: Mapping[str, Any]
    recipe_sha256: str
    classes: tuple[str, ...]
    images: ImageSpec
    nodes: tuple[Node, ...]
    segments: Mapping[str, SegmentEntry]
    engines: tuple[EngineEntry, ...]
    backend: str
    plan: Mapping[str, tuple[PlanEntry, ...]]
    max_batch: int
    threads: int
    buckets: tuple[int, ...]
    files: Mapping[str, FileEntry]
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tree(self) -> Tree:
        """The nodes as a checked tree."""
        return Tree(self.nodes)

    def to_json(self) -> str:
        """The file's text, closed by a digest of all that stands before it."""
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        body = json.loads(json.dumps(values))  # as it is read back: keys of a report become text
        return json.dumps({**body, "digest": _digest(body)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, origin: str) -> Manifest:
        """Read a manifest strictly.

        Raises:
            BundleCorrupt: not JSON, altered, or with unknown, missing or ill-typed keys.
            BundleVersionError: written in a later format.
        """
        body = _parse(text, origin)
        version = body.get("format_version")
        if body.get("format") != FORMAT or not isinstance(version, int) or version < 1:
            message = (
                f"{origin} is not the manifest of a bundle "
                f"(format {body.get('format')!r}, version {version!r})."
            )
            raise BundleCorrupt(message, expected=f"format {FORMAT!r}.")
        if version > FORMAT_VERSION:
            message = f"{origin} has format version {version}."
            raise BundleVersionError(
                message, expected=f"at most {FORMAT_VERSION}.", remedy="install a newer opa-trt."
            )
        digest = body.pop("digest", None)
        if digest != _digest(body):
            message = f"{origin} was altered: its digest does not match."
            raise BundleCorrupt(message, remedy="build the bundle again, or copy it again.")
        del body["format"], body["format_version"]
        try:
            if version == 1:
                body["plan"] = _plan_of_one(body)
            return cls(**_values(cls, body))
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as exc:
            message = f"{origin} cannot be read: {exc}."
            raise BundleCorrupt(message, remedy="build the bundle again.") from exc


def _plan_of_one(body: Mapping[str, Any]) -> dict[str, Any]:
    """Version 1 had one backend for everything."""
    entry = {"backend": body["backend"], "max_batch": body["max_batch"]}
    return {name: [entry] for name in body["segments"]}


def _parse(text: str, origin: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as exc:
        message = f"{origin} is not JSON: {exc}."
        raise BundleCorrupt(message, remedy="build the bundle again.") from exc
    if not isinstance(body, dict):
        message = f"{origin} holds a {type(body).__name__}."
        raise BundleCorrupt(message, expected="an object.")
    return body


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _values(kind: type[Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """``body`` with every known key turned into its type; others are an error."""
    known = {item.name: item for item in fields(kind)}
    if unknown := body.keys() - known.keys():
        message = f"unknown keys {sorted(unknown)}"
        raise ValueError(message)
    needed = {name for name, item in known.items() if item.default_factory is MISSING}
    if missing := needed - body.keys():
        message = f"missing keys {sorted(missing)}"
        raise ValueError(message)
    for name, wanted in _PLAIN.items():
        if type(body[name]) is not wanted:
            message = f"{name} is {body[name]!r}, which is no {wanted.__name__}"
            raise TypeError(message)
    values = dict(body)
    values["classes"] = tuple(map(str, body["classes"]))
    values["buckets"] = tuple(map(int, body["buckets"]))
    images: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in body["images"].items()
    }
    values["images"] = ImageSpec(**images)
    values["nodes"] = tuple(Node.from_dict(node) for node in body["nodes"])
    values["segments"] = {name: _segment(entry) for name, entry in body["segments"].items()}
    values["plan"] = _plan(body)
    values["engines"] = tuple(
        EngineEntry(**{**entry, "target": Target(**entry["target"])}) for entry in body["engines"]
    )
    values["files"] = {path: FileEntry(**entry) for path, entry in body["files"].items()}
    return values


def _segment(entry: Mapping[str, Any]) -> SegmentEntry:
    return SegmentEntry(
        inputs=tuple(TensorSpec.from_dict(spec) for spec in entry["inputs"]),
        outputs=tuple(TensorSpec.from_dict(spec) for spec in entry["outputs"]),
        content=str(entry["content"]),
        forms={str(name): str(file) for name, file in entry["forms"].items()},
    )


def _plan(body: Mapping[str, Any]) -> dict[str, tuple[PlanEntry, ...]]:
    """Every segment's entries, checked to cover 1 to the largest batch without a gap."""
    if body["plan"].keys() != body["segments"].keys():
        message = f"the plan covers {sorted(body['plan'])}, not the segments"
        raise ValueError(message)
    plan = {
        name: tuple(PlanEntry(**entry) for entry in entries)
        for name, entries in body["plan"].items()
    }
    for name, entries in plan.items():
        ends = [0, *(entry.max_batch for entry in entries)]
        starts = [entry.min_batch - 1 for entry in entries]
        if starts != ends[:-1] or ends[-1] != body["max_batch"]:
            message = f"the plan of {name} leaves a gap between 1 and {body['max_batch']}"
            raise ValueError(message)
    return plan
