"""A bundle's routes as one engine each: found, verified and kept like every other engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from opa_trt.builder.monolith import monolith
from opa_trt.bundle import Bundle
from opa_trt.runtime import EngineLoader
from opa_trt.runtime.plan import Plan, Share
from opa_trt.tree import FEATURES, IMAGES, TORCHSCRIPT, Node, Route, Segment, Tree


class Monoliths(Bundle):
    """An opened bundle with an entry in the place of each route; the files are the same.

    Its nodes are called as the last of their route, because their reference outputs are that
    node's in the canary.

    Args:
        bundle: opened.
        segments: what ``joined_segments`` made; at least one.
    """

    def __init__(self, bundle: Bundle, segments: Mapping[Route, Segment]) -> None:
        nodes = tuple(_node(bundle.tree, route, made.name) for route, made in segments.items())
        self.path, self.tree = bundle.path, Tree(nodes)
        self.manifest = replace(bundle.manifest, nodes=nodes, engines=())
        self._joined = {made.name: made for made in segments.values()}

    def segment(self, name: str) -> Segment:
        """A route's segment."""
        return self._joined[name]


def monolith_loader(loader: EngineLoader, segments: Mapping[Route, Segment]) -> EngineLoader:
    """Like ``loader``, of one engine a route: on the backends that run the route's last node."""
    bundle = loader.bundle
    plan = {
        made.name: loader.plan[bundle.tree[route.last].segment] for route, made in segments.items()
    }
    return replace(
        loader, bundle=Monoliths(bundle, segments), plan=plan, differences={}, left_out={}
    )


def joined_segments(bundle: Bundle, plans: Sequence[Plan]) -> dict[Route, Segment]:
    """A segment for every route of several nodes that hand on features.

    They have the portable forms that the plans' backends read, and TorchScript where the bundle
    has it: what identifies a segment is then the same, whoever runs it.

    Raises:
        ConfigError: the segments of a route have no form in common.
        BackendUnavailable: a package that joins them is missing.
    """
    forms = {_form(bundle, name, share) for plan in plans for name in plan for share in plan[name]}
    forms = forms - {""} and forms | {TORCHSCRIPT}
    return {
        route: _joined(bundle, route, forms)
        for route in bundle.tree.routes()
        if len(route.nodes) > 1 and _hands_on(bundle.tree, route)
    }


def _form(bundle: Bundle, name: str, share: Share) -> str:
    """The form of a segment that a backend reads; "" for one that computes nothing."""
    entry = bundle.manifest.segments[name]
    bare = Segment(name, entry.inputs, entry.outputs, dict.fromkeys(entry.forms, b""), "")
    return share.vendor.form(bare)


def _hands_on(tree: Tree, route: Route) -> bool:
    """Whether each node but the first reads what the one before it gives."""
    return all(tree[name].source == FEATURES for name in route.nodes[1:])


def _joined(bundle: Bundle, route: Route, forms: set[str]) -> Segment:
    first, *others = (bundle.segment(bundle.tree[name].segment) for name in route.nodes)
    made, name = _only(first, forms), route.entry
    for other, node in zip(others, route.nodes[1:], strict=True):
        name = f"{name}+{node}"
        if forms:
            made = monolith(made, _only(other, forms), name)
        else:
            key = hashlib.sha256(f"{made.content} {other.content}".encode()).hexdigest()
            made = Segment(name, made.inputs, other.outputs, {}, key)
    return made


def _only(segment: Segment, forms: set[str]) -> Segment:
    kept = {form: data for form, data in segment.forms.items() if form in forms}
    return replace(segment, forms=kept)


def _node(tree: Tree, route: Route, segment: str) -> Node:
    last = tree[route.last]
    return replace(
        last,
        segment=segment,
        source=IMAGES,
        successors=(),
        resolution=tree[route.entry].resolution,
        macs=sum(tree[name].macs for name in route.nodes),
    )
