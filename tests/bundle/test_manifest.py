"""What ``manifest.json`` says comes back as it was written, or not at all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.bundle import Bundle, EngineEntry, ImageSpec, Manifest, SegmentEntry
from opa_trt.bundle.manifest import FORMAT, FORMAT_VERSION
from opa_trt.errors import BundleCorrupt, BundleVersionError
from opa_trt.tree import Node, PlanEntry, Target, TensorSpec

Body = dict[str, Any]


def example(**changes: Any) -> Manifest:
    spec, logits = TensorSpec("images", (3, 4, 4), "uint8"), TensorSpec("logits", (2,))
    values: Body = {
        "name": "toy",
        "version": "0.1.0",
        "recipe": {"seed": 1, "list": [1, 2]},
        "recipe_sha256": "ab",
        "classes": ("cat", "dög"),
        "images": ImageSpec(4, "uint8", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0)),
        "nodes": (Node("only", "s", "images", ("logits",), code=(0.5, 1.0), accuracy=0.25),),
        "segments": {"s": SegmentEntry((spec,), (logits,), "cd", {"torchscript": "segments/s.pt"})},
        "engines": (EngineEntry("s", Target("null", "1"), "key", "engines/s"),),
        "backend": "null",
        "plan": {"s": (PlanEntry("null", "fp32", 1, 2), PlanEntry("null", "fp16", 3, 8))},
        "max_batch": 8,
        "threads": 2,
        "buckets": (1, 8),
        "files": {},
    }
    return Manifest(**{**values, **changes})


def forged(change: Callable[[Body], Any]) -> str:
    """The example's text after ``change``, with a digest that matches."""
    body = json.loads(example().to_json())
    del body["digest"]
    change(body)
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "digest": digest})


def read(text: str) -> Manifest:
    return Manifest.from_json(text, "here/manifest.json")


# --- round trip ---------------------------------------------------------------------------------


def test_what_is_written_comes_back() -> None:
    assert read(example().to_json()) == example()


def test_writing_is_repeatable() -> None:
    assert example().to_json() == example().to_json()


def test_the_text_is_indented_json_that_names_format_and_version() -> None:
    body = json.loads(example().to_json())
    assert (body["format"], body["format_version"]) == (FORMAT, FORMAT_VERSION)
    assert example().to_json().count("\n") > 20


def test_a_report_with_numbers_as_keys_can_be_read_back() -> None:
    report = {"latency": {1: 0.5, 2: 0.75, 16: 3.0, 128: 20.0}}
    found = read(example(report=report).to_json()).report
    assert found == {"latency": {"1": 0.5, "2": 0.75, "16": 3.0, "128": 20.0}}


def test_an_accuracy_that_is_not_known_can_be_read_back() -> None:
    assert math.isnan(read(example(report={"accuracy": math.nan}).to_json()).report["accuracy"])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(report=st.dictionaries(st.text(), values), names=st.lists(st.text(), min_size=1))
def test_any_report_and_any_class_names_come_back(report: Body, names: list[str]) -> None:
    manifest = example(report=report, classes=tuple(names))
    assert read(manifest.to_json()) == manifest


def test_version_1_had_one_backend_for_everything() -> None:
    def downgrade(body: Body) -> None:
        del body["plan"]
        body["format_version"] = 1

    found = read(forged(downgrade))
    assert found.plan == {"s": (PlanEntry("null", "fp32", 1, 8),)}
    assert found.nodes == example().nodes


def test_version_2_without_a_plan_is_refused() -> None:
    with pytest.raises(BundleCorrupt, match="plan"):
        read(forged(lambda body: body.pop("plan")))


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("\x00\x01", "is not JSON"),
        ("[1, 2]", "holds a list"),
        ("3", "holds a int"),
        ("{}", "is not the manifest of a bundle"),
        ('{"format": "opa_trt.bundle"}', "is not the manifest of a bundle"),
        ('{"format": "another", "format_version": 1}', "format 'another'"),
        ('{"format": "opa_trt.bundle", "format_version": "1"}', "is not the manifest"),
        ('{"format": "opa_trt.bundle", "format_version": 0}', "version 0"),
    ],
)
def test_what_is_no_manifest_is_corrupt(text: str, said: str) -> None:
    with pytest.raises(BundleCorrupt, match=said) as caught:
        read(text)
    assert "here/manifest.json" in str(caught.value)


def test_a_later_format_is_told_before_anything_else_is_read() -> None:
    text = json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION + 1, "new": 1})
    with pytest.raises(BundleVersionError, match="install a newer opa-trt"):
        read(text)


@pytest.mark.parametrize("key", ["name", "max_batch", "nodes", "digest"])
def test_an_altered_value_is_noticed(key: str) -> None:
    body = json.loads(example().to_json())
    body[key] = "altered"
    with pytest.raises(BundleCorrupt, match="its digest does not match"):
        read(json.dumps(body))


def test_a_manifest_without_digest_is_refused() -> None:
    body = json.loads(example().to_json())
    del body["digest"]
    with pytest.raises(BundleCorrupt, match="its digest does not match"):
        read(json.dumps(body))


WRONG: dict[str, tuple[Callable[[Body], Any], str]] = {
    "unknown key": (lambda b: b.update(extra=1), r"unknown keys \['extra'\]"),
    "missing key": (lambda b: b.pop("nodes"), r"missing keys \['nodes'\]"),
    "name is no text": (lambda b: b.update(name=3), "name is 3, which is no str"),
    "batch is text": (lambda b: b.update(max_batch="8"), "max_batch is '8', which is no int"),
    "threads is true": (lambda b: b.update(threads=True), "threads is True, which is no int"),
    "recipe is a list": (lambda b: b.update(recipe=[]), "recipe is"),
    "nodes is a number": (lambda b: b.update(nodes=5), "cannot be read"),
    "a node is a number": (lambda b: b.update(nodes=[5]), "cannot be read"),
    "node's unknown key": (lambda b: b["nodes"][0].update(extra=1), "extra"),
    "node's missing key": (lambda b: b["nodes"][0].pop("segment"), "segment"),
    "image's unknown key": (lambda b: b["images"].update(extra=1), "extra"),
    "segments is a list": (lambda b: b.update(segments=[]), "cannot be read"),
    "segment without forms": (lambda b: b["segments"]["s"].pop("forms"), "forms"),
    "spec without shape": (lambda b: b["segments"]["s"]["inputs"][0].pop("shape"), "shape"),
    "impossible target": (lambda b: b["engines"][0]["target"].update(max_batch=0), "batch range"),
    "file without hash": (lambda b: b.update(files={"a": {"size": 1}}), "sha256"),
    "plan leaves a segment out": (lambda b: b["plan"].clear(), "not the segments"),
    "plan with a gap": (lambda b: b["plan"]["s"][1].update(min_batch=4), "leaves a gap"),
    "plan too short": (lambda b: b["plan"]["s"].pop(), "leaves a gap"),
    "plan's unknown key": (lambda b: b["plan"]["s"][0].update(extra=1), "extra"),
    "buckets are text": (lambda b: b.update(buckets=["one"]), "cannot be read"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_manifest_of_another_shape_is_corrupt(name: str) -> None:
    change, said = WRONG[name]
    with pytest.raises(BundleCorrupt, match=said):
        read(forged(change))


def test_nodes_that_are_no_tree_are_corrupt(toy: Any, tmp_path: Path) -> None:
    loop = (toy.nodes[0], *toy.nodes)
    with pytest.raises(BundleCorrupt, match="are no tree"):
        Bundle(toy.pack(tmp_path / "loop.opa", nodes=loop))
