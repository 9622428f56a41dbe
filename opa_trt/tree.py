"""The words that everything shares: tensor specs, targets, segments, nodes, routes, trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from opa_trt.errors import ConfigError

IMAGES, FEATURES, LOGITS = "images", "features", "logits"
TORCHSCRIPT, ONNX, PT2 = "torchscript", "onnx", "pt2"  # portable forms
OPA, WHOLE, CASCADE, BRANCHYNET = "opa", "whole", "cascade", "branchynet"  # systems
CODE_FREE = (ONNX,)  # those that cannot execute code


REMEDY = "list it under baselines in the recipe, and build again."


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape of one row (without the batch) and dtype of a tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TensorSpec:
        """Read what ``dataclasses.asdict`` made."""
        return cls(values["name"], tuple(values["shape"]), values["dtype"])


@dataclass(frozen=True)
class Target:
    """What an engine is compiled for. ``threads`` holds for torch and vendors alike.

    Raises:
        ConfigError: an empty batch range, or fewer than one thread.
    """

    backend: str
    version: str
    device: str = "cpu"
    precision: str = "fp32"
    min_batch: int = 1
    max_batch: int = 128
    threads: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.max_batch:
            msg = f"batch range {self.min_batch} to {self.max_batch}."
            raise ConfigError(
                msg,
                expected="1 <= min_batch <= max_batch.",
            )
        if self.threads < 1:
            msg = f"threads = {self.threads}."
            raise ConfigError(msg, expected="at least 1.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PlanEntry:
    """Which backend runs a segment at batch sizes ``min_batch`` to ``max_batch``.

    ``backend`` is ``name`` or ``name:device``, as users write it.
    """

    backend: str
    precision: str = "fp32"
    min_batch: int = 1
    max_batch: int = 128


@dataclass(frozen=True)
class Segment:
    """What one engine computes, in portable forms.

    Args:
        name: for messages.
        inputs: what it reads; rows are independent of each other.
        outputs: what it gives, in the order of the portable forms.
        forms: portable forms by name (``torchscript``, ``onnx``, ``pt2``) as bytes.
        content: hash of the canonical graph and the weights.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    forms: Mapping[str, bytes]
    content: str

    def in_onnx(self) -> Segment:
        """The segment with its tensors named as its ONNX form names them."""
        read, given = ([spec.name for spec in specs] for specs in (self.inputs, self.outputs))
        names = onnx_outputs(read, given)
        if names == given:
            return self
        outputs = [replace(s, name=name) for s, name in zip(self.outputs, names, strict=True)]
        return replace(self, outputs=tuple(outputs))

    def without_code(self) -> Segment:
        """The segment with those of its forms alone that cannot execute code."""
        return replace(self, forms={k: self.forms[k] for k in self.forms if k in CODE_FREE})


def onnx_outputs(inputs: Sequence[str], outputs: Sequence[str]) -> list[str]:
    """What ONNX calls ``outputs``: there, one that has an input's name needs another."""
    return [f"{name}_out" if name in inputs else name for name in outputs]


@dataclass(frozen=True)
class Node:
    """One place in the tree: a segment's engine, what it reads, where an image may go next.

    Args:
        name: unique in its tree.
        segment: what its engine computes; nodes may share one.
        source: ``images``, or ``features`` of the parent.
        outputs: ``features``, ``logits`` or both.
        successors: names of the nodes that may follow.
        resolution: side that its segment reads, in pixels.
        system: which deployment it belongs to: ``opa``, or one that ``opa`` is compared with on
            the same machine (``whole``, ``cascade``, ``branchynet``).
        code: the arch's encoding, for predictors; empty where there is none.
        macs: of this segment, for one image.
        accuracy: measured at build on the fitting images, stopping here (0 to 1).
    """

    name: str
    segment: str
    source: str
    outputs: tuple[str, ...]
    successors: tuple[str, ...] = ()
    resolution: int = 0
    code: tuple[float, ...] = ()
    macs: int = 0
    accuracy: float = 0.0
    system: str = OPA

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Node:
        """Read what ``dataclasses.asdict`` made."""
        tuples = ("outputs", "successors", "code")
        plain: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in values.items()}
        return cls(**plain)


@dataclass(frozen=True)
class Route:
    """Names of the nodes from an entry to logits."""

    nodes: tuple[str, ...]

    @property
    def entry(self) -> str:
        """The first node."""
        return self.nodes[0]

    @property
    def last(self) -> str:
        """The node whose logits are the answer."""
        return self.nodes[-1]

    def __str__(self) -> str:
        """As people read it: a node whose name goes on in the next one's is not named twice."""
        after = (*self.nodes[1:], "")
        pairs = zip(self.nodes, after, strict=True)
        return " → ".join(name for name, later in pairs if not later.startswith(f"{name}-"))


class Tree:
    """A deployed network: nodes by name, checked to be a tree whose leaves have logits.

    Raises:
        ConfigError: a dangling or repeated successor, a leaf without logits, a cycle, a node
            that reads features its parent does not give, an entry that reads no images.
    """

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self.nodes: dict[str, Node] = {node.name: node for node in nodes}
        if len(self.nodes) != len(nodes) or not nodes:
            msg = "a tree with no nodes or with repeated names."
            raise ConfigError(msg, expected="neither.")
        self.parents: dict[str, str] = {}
        for node in nodes:
            for successor in node.successors:
                self._adopt(node, successor)
        self.entries = tuple(node for node in nodes if node.name not in self.parents)
        for node in nodes:
            known = (IMAGES,) if node in self.entries else (IMAGES, FEATURES)
            if node.source not in known:
                msg = f"{node.name} reads {node.source!r}."
                raise ConfigError(msg, expected=" or ".join(known) + ".")
        reached = {route_node for route in self.routes() for route_node in route.nodes}
        if missing := self.nodes.keys() - reached:
            msg = f"nodes {sorted(missing)} lead nowhere."
            raise ConfigError(msg, expected="a tree.")

    def _adopt(self, parent: Node, name: str) -> None:
        child = self.nodes.get(name)
        if child is None or name in self.parents or name == parent.name:
            msg = f"{parent.name} has the successor {name!r}."
            raise ConfigError(
                msg,
                expected="another node that has no other parent.",
            )
        if child.source == FEATURES and FEATURES not in parent.outputs:
            msg = f"{name} reads features, which {parent.name} does not give."
            raise ConfigError(
                msg,
                expected=f"{FEATURES} among its outputs {parent.outputs}.",
            )
        if child.system != parent.system:
            msg = f"{name} is of {child.system}, and follows {parent.name} of {parent.system}."
            raise ConfigError(msg, expected="one system from an entry to its leaves.")
        self.parents[name] = parent.name

    def entries_of(self, system: str) -> tuple[Node, ...]:
        """Where a group may enter a system.

        Raises:
            ConfigError: the tree has no node of it.
        """
        found = tuple(node for node in self.entries if node.system == system)
        if not found:
            known = ", ".join(dict.fromkeys(node.system for node in self.entries))
            msg = f"this bundle has no nodes for {system}."
            raise ConfigError(msg, expected=f"one of {known}.", remedy=REMEDY)
        return found

    def routes(self, start: str | None = None) -> Iterator[Route]:
        """Every way to logits, from all entries or from ``start``, parents before children."""
        starts = [start] if start else [entry.name for entry in self.entries]
        stack: list[tuple[str, ...]] = [(name,) for name in reversed(starts)]
        while stack:
            path = stack.pop()
            node = self.nodes[path[-1]]
            if LOGITS in node.outputs:
                yield Route(path)
            elif not node.successors:
                msg = f"leaf {node.name} has no logits."
                raise ConfigError(msg, expected="logits.")
            stack.extend((*path, name) for name in reversed(node.successors))

    def route_to(self, end: str) -> Route:
        """The one way from an entry to the logits of ``end``, a node that has logits."""
        return next(route for route in self.routes() if route.last == end)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]
