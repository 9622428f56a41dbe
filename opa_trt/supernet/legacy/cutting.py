"""A network cut at its phases: what lies before, between and after them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from torch import fx, nn

from opa_trt.errors import ConfigError, UnknownNameError

RESNET = ("layer1", "layer2", "layer3", "layer4")
PHASES: Mapping[str, tuple[str, ...]] = {
    "resnet18": RESNET,
    "resnet34": RESNET,
    "resnet50": RESNET,
    "resnet101": RESNET,
    "mobilenet_v2": (
        "features[2:4]",
        "features[4:7]",
        "features[7:11]",
        "features[11:14]",
        "features[14:17]",
    ),
}
RANGE = re.compile(r"(?P<path>[^\[\]]*)\[(?P<first>\d+):(?P<end>\d+)\]")
HOW = "`layer1`, a sub-module; `features[2:4]`, children 2 and 3 of one; `[2:4]`, of the module."


@dataclass(frozen=True)
class Pieces:
    """A network in pieces that run one after the other: a link, a phase, a link, …, a link.

    They share the network's layers.
    """

    links: tuple[nn.Module, ...]
    phases: tuple[nn.Module, ...]


def phase_names(phases: str | Sequence[str]) -> tuple[str, ...]:
    """The phases of a network in ``PHASES``, or those given.

    Raises:
        UnknownNameError: a network that is not there.
        ConfigError: no phase, or one that stands there twice.
    """
    if isinstance(phases, str):
        if phases not in PHASES:
            kind = "phase map"
            raise UnknownNameError(kind, phases, PHASES)
        return PHASES[phases]
    names = tuple(phases)
    if not names or len(set(names)) < len(names):
        message = f"phases {list(names)}."
        raise ConfigError(message, expected="at least one, and each once.")
    return names


def cut(module: nn.Module, phases: Sequence[str]) -> Pieces:
    """``module`` in pieces; one that is empty is an identity.

    Args:
        module: in evaluation mode.
        phases: each a sub-module's path, or a range of its children (``HOW``).

    Raises:
        ConfigError: a phase that is not there; a module that torch.fx cannot trace, or whose
            phases do not follow each other, each fed by the one before alone.
    """
    members = [_members(module, phase) for phase in phases]
    nodes = [*_traced(module, frozenset(chain(*members))).nodes]
    inputs = [node for node in nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        message = f"{type(module).__name__} takes {len(inputs)} inputs."
        raise ConfigError(message, expected="one, the images.")
    spans = [_span(nodes, phase, paths) for phase, paths in zip(phases, members, strict=True)]
    places = {node: place for place, node in enumerate(nodes)}
    _check_order(phases, [places[node] for span in spans for node in span])
    links, before, entry = [], 1, inputs[0]
    for first, last in spans:
        links.append(_link(module, nodes[before : places[first]], entry, first.args[0]))
        before, entry = places[last] + 1, last
    links.append(_link(module, nodes[before:-1], entry, nodes[-1].args[0]))
    return Pieces(tuple(links), tuple(_joined(module, paths) for paths in members))


def _members(module: nn.Module, phase: str) -> list[str]:
    """Paths of the sub-modules that make up a phase."""
    found = RANGE.fullmatch(phase)
    path = found["path"] if found else phase
    layers = dict(module.named_modules())
    if path not in layers or not phase:
        message = f"phase {phase!r}: {type(module).__name__} has no {path!r}."
        raise ConfigError(message, expected=HOW)
    if not found:
        return [path]
    names = [name for name, _ in layers[path].named_children()]
    first, end = int(found["first"]), int(found["end"])
    if not first < end <= len(names):
        message = f"phase {phase!r} of {len(names)} children."
        raise ConfigError(message, expected=f"a range within 0 and {len(names)}.")
    return [f"{path}.{name}".lstrip(".") for name in names[first:end]]


class _Tracer(fx.Tracer):
    """Looks into everything but torch's own layers and the members of phases."""

    def __init__(self, whole: Collection[str]) -> None:
        super().__init__()
        self._whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inside = super().is_leaf_module(m, module_qualified_name)
        return module_qualified_name in self._whole or inside


def _traced(module: nn.Module, whole: Collection[str]) -> fx.Graph:
    return traced(_Tracer(whole), module)


def traced(tracer: fx.Tracer, module: nn.Module) -> fx.Graph:
    """What ``module`` computes.

    Raises:
        ConfigError: the tracer cannot follow it.
    """
    try:
        return tracer.trace(module)
    except Exception as exc:  # whatever a forward does with a proxy that it did not expect
        message = f"{type(module).__name__} cannot be traced: {exc}"
        raise ConfigError(
            message, expected="a forward that torch.fx can trace: no branch on a tensor's values."
        ) from exc


def _span(nodes: Sequence[fx.Node], phase: str, paths: Sequence[str]) -> tuple[fx.Node, fx.Node]:
    """The calls of a phase's first and last members."""
    calls = []
    for path in paths:
        found = [node for node in nodes if node.op == "call_module" and node.target == path]
        if len(found) != 1 or len(found[0].args) != 1 or found[0].kwargs:
            message = f"phase {phase}: {path} is called {len(found)} times."
            raise ConfigError(message, expected="once, with one tensor.")
        calls.append(found[0])
    for one, other in pairwise(calls):
        if other.args != (one,) or [*one.users] != [other]:
            message = f"phase {phase}: {other.target} does not follow {one.target} alone."
            raise ConfigError(message, expected="modules that run one after the other.")
    return calls[0], calls[-1]


def _check_order(phases: Sequence[str], places: Sequence[int]) -> None:
    if sorted(places) != list(places):
        message = f"phases {', '.join(phases)}."
        raise ConfigError(message, expected="the order in which they run.")


def _link(
    module: nn.Module, nodes: Sequence[fx.Node], entry: fx.Node, result: fx.node.Argument
) -> nn.Module:
    """What ``nodes`` make of ``entry`` until there is ``result``."""
    graph = fx.Graph()
    known = {entry: graph.placeholder("x")}
    for node in nodes:
        for read in node.all_input_nodes:
            if read.op == "get_attr" and read not in known:
                known[read] = graph.node_copy(read)
            _check_known(read, known, node.name)
        known[node] = graph.node_copy(node, known.__getitem__)
    if not isinstance(result, fx.Node):
        message = f"{type(module).__name__} gives {type(result).__name__} where a phase begins, "
        message += "or at its end."
        raise ConfigError(message, expected="one tensor.")
    _check_known(result, known, "what follows")
    if result is entry:
        return nn.Identity()
    graph.output(known[result])
    return fx.GraphModule(module, graph)


def _check_known(read: fx.Node, known: Collection[fx.Node], reader: str) -> None:
    if read not in known:
        message = f"{reader} reads {read.name}, past a phase."
        raise ConfigError(
            message,
            expected="phases that follow each other, each fed by the one before alone.",
            remedy="make one phase of all that lies between.",
        )


def _joined(module: nn.Module, paths: Sequence[str]) -> nn.Module:
    layers = [module.get_submodule(path) for path in paths]
    alone = len(layers) == 1 and not fx.Tracer().is_leaf_module(layers[0], paths[0])
    return layers[0] if alone else nn.Sequential(*layers)
