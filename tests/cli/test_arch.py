"""``opa-trt arch``: OFA's Table 1, every form of file, and what contradicts it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opa_trt.supernet import Arch, Space, published_space, space_from_dict

Write = Callable[[Any], Path]

TINY: dict[str, Any] = {
    "name": "mobilenet_v3", "classes": 3, "resolutions": [16, 20], "depth_choices": [1, 2],
    "kernel_choices": [3, 5], "expand_choices": [1, 2], "stem_width": 8, "stage_widths": [8, 16],
    "stage_strides": [1, 2], "stage_act": ["relu", "h_swish"],
    "stage_squeeze_excite": [False, True], "head_width": 16, "feature_width": 24,
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(value: Any) -> Path:
        path = tmp_path / "arch.json"
        path.write_text(json.dumps(value), encoding="utf-8")
        return path

    return written


@pytest.fixture
def tiny() -> Space:
    return space_from_dict(TINY)


def net_config(space: Space, arch: Arch) -> dict[str, Any]:
    """The arch as the published files have it."""
    run = [operator for part in space.operators(arch).values() for operator in part]
    stem, *blocks, expand, mix, classifier = [o.net_layer for o in run if o.net_layer]
    rows = [
        {"mobile_inverted_conv": b, "shortcut": {"name": "IdentityLayer"} if joined else None}
        for b in blocks
        for joined in [b.pop("shortcut")]
    ]
    return {
        "name": "MobileNetV3",
        "first_conv": stem,
        "blocks": rows,
        "final_expand_layer": expand,
        "feature_mix_layer": mix,
        "classifier": classifier,
    }


@pytest.mark.parametrize(
    ("values", "macs", "params"),
    [
        ({"ks": 3, "e": 3, "d": 2}, 121278672, 3410792),
        ({"ks": 7, "e": 6, "d": 4}, 566170656, 7664760),
    ],
)
def test_columns_of_table_1(call: Any, write: Write, values: Any, macs: int, params: int) -> None:
    path = write({**values, "r": [224]})
    called = call("arch", path, "--space", "mobilenet_v3", "--json")
    assert called.code == 0
    found = called.json()
    assert (found["macs"], found["params"]) == (macs, params)
    assert set(found) == {"macs", "params", "arch", "ofa", "space"}
    assert f"{macs:,}" in call("arch", path, "--space", "mobilenet_v3").out


def test_what_it_prints_it_reads(call: Any, write: Write, tiny: Space) -> None:
    path = write({"space": TINY, "arch": tiny.smallest().to_dict()})
    first = call("arch", path, "--json").json()
    assert call("arch", write(first), "--json").json() == first
    assert Arch.from_dict(first["arch"]) == tiny.smallest()
    assert Arch.from_ofa(first["ofa"], tiny) == tiny.smallest()
    assert space_from_dict(first["space"]) == tiny


@pytest.mark.parametrize("width", [1.0, 1.2])
def test_a_net_config_says_its_space(call: Any, write: Write, width: float) -> None:
    space = published_space("mobilenet_v3", width=width, classes=7)
    arch = space.smallest(160)
    path = write(net_config(space, arch))
    found = call("arch", path, "--resolution", 160, "--json").json()
    assert found["arch"] == json.loads(json.dumps(arch.to_dict()))
    assert (found["space"]["width"], found["space"]["classes"]) == (width, 7)
    assert call("arch", path, "--space", "mobilenet_v3", "--width", width).code == 0


def test_a_line_a_stage(call: Any, write: Write, tiny: Space) -> None:
    arch = tiny.arch(resolution=20, depths=[2, 1], kernel_sizes=[3, 5, 5, 3], expand_ratios=2)
    out = call("arch", write({"space": TINY, "arch": arch.to_dict()})).out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    costs = tiny.costs(arch)
    assert lines[0] == "mobilenet_v3, width 1, 3 classes, resolution 20"
    assert f"stage1 2 3 5 2 2 8 {costs['stage1'].macs:,} {costs['stage1'].params:,}" in lines
    assert f"stage2 1 5 2 16 {costs['stage2'].macs:,} {costs['stage2'].params:,}" in lines
    assert lines[-1] == f"total {tiny.macs(arch):,} {tiny.params(arch):,}"


def test_a_resnet_shows_its_stem(call: Any, write: Write) -> None:
    out = call("arch", write({"d": 2, "e": 0.35, "w": 2, "r": 224}), "--space", "resnet50d").out
    assert "7,491,643,904" in out
    assert "48,105,992" in out


def test_it_says_where_the_resolution_is_the_spaces_own(call: Any, write: Write) -> None:
    path = write({"ks": 3, "e": 3, "d": 2})
    words = ("arch", path, "--space", "mobilenet_v3")
    assert "resolution 224 (not said by the file" in call(*words).out
    assert "not said" not in call(*words, "--resolution", 160).out


def test_the_recipe_of_a_space(call: Any, write: Write) -> None:
    called = call("arch", write({"ks": 3, "e": 2, "d": 2, "r": 28}), "--space", "digits", "--json")
    assert called.json()["space"]["classes"] == 10


WRONG: dict[str, tuple[Any, tuple[Any, ...], str]] = {
    "no space": ({"ks": 3, "e": 3, "d": 2}, (), "does not say of which space"),
    "an unknown space": ({"d": 2}, ("--space", "mobilnet_v3"), "did you mean 'mobilenet_v3'?"),
    "another space": ("told", ("--space", "proxyless"), "--space proxyless contradicts"),
    "another recipe's": ("told", ("--space", "digits"), "--space digits contradicts"),
    "another width": ("told", ("--width", 1.2), "--width 1.2 contradicts"),
    "a wrong value": ({"ks": 4, "e": 3, "d": 2}, ("--space", "mobilenet_v3"), "ks[0] is 4"),
    "a resolution": ("told", ("--resolution", 33), "resolution 33"),
    "no arch": ({"a": 1}, ("--space", "mobilenet_v3"), "the keys ['a']"),
}


@pytest.mark.parametrize(("value", "options", "says"), WRONG.values(), ids=WRONG.keys())
def test_bad_input(
    call: Any, write: Write, tiny: Space, here: Path, value: Any, options: Any, says: str
) -> None:
    told = {"space": TINY, "arch": tiny.smallest().to_dict()}
    called = call("arch", write(told if value == "told" else value), *options)
    assert called.code == 2
    assert called.out == ""
    assert says in called.err
    assert "Expected" in called.err
    assert list(here.iterdir()) == []


def test_a_file_that_does_not_exist(call: Any) -> None:
    called = call("arch", "gone.json")
    assert called.code == 2
    assert "gone.json does not exist" in called.err
