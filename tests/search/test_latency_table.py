"""Latency tables: the published layout and our own, and everything that can be wrong with one."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from opa_trt.errors import BackendUnavailable, ConfigError
from opa_trt.search.additive import AdditiveCost
from opa_trt.search.latency_table import (
    FORMAT,
    VERSION,
    LatencyTable,
    read_latency,
    table_to_dict,
)
from opa_trt.supernet import published_space
from opa_trt.supernet.operators import Operator
from opa_trt.supernet.space import Space

STEM = "Conv-input:16x16x3-output:8x8x8"
Operators = Callable[[Space, int], list[Operator]]
Write = Callable[..., Path]


def latency_of(operator: Operator) -> float:
    """An invented latency, ms."""
    return 0.01 + operator.cost.macs * 1e-6


@pytest.fixture
def folder(mobile: Space, operators_at: Operators, tmp_path: Path) -> Path:
    """Published tables of the little space, under names that say the wrong resolution."""
    folder = tmp_path / "phone"
    folder.mkdir()
    for place, resolution in enumerate(mobile.resolutions):
        table = {
            operator.key: {"count": 9, "mean": latency_of(operator), "std": 0.5}
            for operator in operators_at(mobile, resolution)
        }
        (folder / f"{900 + place}_lookup_table.yaml").write_text(yaml.safe_dump(table))
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes one file, text or JSON."""

    def to(name: str, content: str | Mapping[str, Any]) -> Path:
        path = tmp_path / name
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")
        return path

    return to


@pytest.fixture
def ours(mobile: Space, operators_at: Operators) -> LatencyTable:
    """A table of ours."""
    operators = {o.key: latency_of(o) for r in mobile.resolutions for o in operators_at(mobile, r)}
    by_resolution = dict.fromkeys(mobile.resolutions, operators)
    return LatencyTable("ours", by_resolution, 1.25, 0.5, mobile, {"machine": "none"})


# --- the published layout -------------------------------------------------------------------------


def test_a_folder_of_published_tables_gives_the_sum_of_means(mobile: Space, folder: Path) -> None:
    cost = read_latency(folder).cost(mobile.genome)
    for row in mobile.genome.sample(20, np.random.default_rng(0)):
        run = mobile.operators(mobile.genome.arch(row)).values()
        expected = sum(latency_of(operator) for part in run for operator in part)
        assert cost(row[None])[0] == pytest.approx(expected)


def test_the_resolution_is_that_of_the_stem_whatever_the_file_is_called(folder: Path) -> None:
    table = read_latency(folder)
    assert table.resolutions == (16, 32)
    assert table.name == "phone"
    assert table.space is None


def test_one_published_file_covers_one_resolution(folder: Path) -> None:
    assert read_latency(folder / "901_lookup_table.yaml").resolutions == (32,)


def test_other_files_of_a_folder_are_left_alone(folder: Path) -> None:
    (folder / "README.md").write_text("- [")
    assert read_latency(str(folder)).resolutions == (16, 32)


def test_an_entry_may_be_a_number(write: Write) -> None:
    table = read_latency(write("t.yml", f"{STEM}: 2\nother: 0.5\n"))
    assert table.by_resolution == {16: {STEM: 2.0, "other": 0.5}}


def test_two_tables_of_one_resolution_are_refused(folder: Path) -> None:
    (folder / "b.yaml").write_bytes((folder / "900_lookup_table.yaml").read_bytes())
    with pytest.raises(ConfigError, match=r"two tables for resolution 16, one of them b\.yaml"):
        read_latency(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no table"),
        ("{}", "holds no table"),
        ("- a\n- b\n", "holds no table"),
        ("just words", "holds no table"),
        ("&a [*a]", "holds no table"),
        (f"{STEM}: {{mean: .nan}}", "has the latency nan"),
        (f"{STEM}: {{mean: .inf}}", "has the latency inf"),
        (f"{STEM}: {{mean: -0.1}}", "has the latency -0.1"),
        (f"{STEM}: {{mean: true}}", "has the latency True"),
        (f"{STEM}: {{mean: '1'}}", "has the latency '1'"),
        (f"{STEM}: {{count: 3}}", "has the latency None"),
        (f"{STEM}: null", "has the latency None"),
        (f"{STEM}: [1.0]", "has the latency"),
        (f"{STEM}: 1{'0' * 400}", "has the latency 1000"),
        ("other: 1.0", "stem convolutions for no resolutions"),
        (f"{STEM}: 1\nConv-input:20x20x3-output:8x8x8: 1", r"stem convolutions for \[16, 20\]"),
        ("Conv-input:16x20x3-output:8x8x8: 1", "stem convolutions for no"),
        ("a: [1", "not readable YAML"),
        ("a: b: c", "not readable YAML"),
        ("\0", "not readable YAML"),
        ("a: 2001-99-99", "not readable YAML"),
        ("a: !!bool maybe", "not readable YAML"),
        ("a: !!timestamp never", "not readable YAML"),
        ("? [1]\n: 2", "not readable YAML"),
    ],
)
def test_an_ill_formed_table_is_refused(write: Write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_latency(write("t.yaml", text))
    assert "t.yaml" in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_bytes(b"a: \xff\xfe\x80")
    with pytest.raises(ConfigError, match="not readable YAML"):
        read_latency(tmp_path / "t.yaml")


def test_a_folder_called_like_a_table_is_refused(folder: Path) -> None:
    (folder / "z.yaml").mkdir()
    with pytest.raises(ConfigError, match="not readable YAML"):
        read_latency(folder)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:pathlib.Path.touch [{}]",
        "!!python/object/apply:os.system ['touch {}']",
        "!!python/object/new:os.system ['touch {}']",
    ],
)
def test_python_tags_run_nothing(write: Write, tmp_path: Path, tag: str) -> None:
    touched = tmp_path / "touched"
    with pytest.raises(ConfigError, match="not readable YAML"):
        read_latency(write("t.yaml", f"{STEM}: {tag.format(touched)}"))
    assert not touched.exists()


def test_a_table_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="phones does not exist") as caught:
        read_latency(tmp_path / "phones")
    assert "measure-latency" in caught.value.remedy
    assert "macs" in caught.value.expected


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no latency table"):
        read_latency(tmp_path)


def test_without_pyyaml_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(BackendUnavailable, match="PyYAML is not installed") as caught:
        read_latency(folder)
    assert caught.value.remedy == "pip install 'opa-trt[build]'"


# --- what is looked up ----------------------------------------------------------------------------


def test_an_operator_that_is_missing_is_named_with_how_to_measure_it(
    mobile: Space, folder: Path
) -> None:
    other = replace(mobile, expand_choices=(2, 6))
    with pytest.raises(ConfigError, match=r"lacks expanded_conv-.*-expand:48-.* at") as caught:
        read_latency(folder).cost(other.genome)
    assert "opa-trt search measure-latency" in caught.value.remedy


def test_a_resolution_that_is_missing_is_named(mobile: Space, folder: Path) -> None:
    with pytest.raises(ConfigError, match="phone has no resolution 20") as caught:
        read_latency(folder).cost(replace(mobile, resolutions=(16, 20)).genome)
    assert "[16, 32]" in caught.value.expected


def test_scale_and_offset_apply_to_whole_networks(ours: LatencyTable, mobile: Space) -> None:
    row = mobile.genome.sample(1, np.random.default_rng(0))
    plain = AdditiveCost(mobile.genome, ours.lookup)(row)[0]
    assert ours.cost(mobile.genome)(row)[0] == pytest.approx(0.5 + 1.25 * plain)


# --- our own --------------------------------------------------------------------------------------


def test_our_table_is_read_back_as_it_was_written(ours: LatencyTable, write: Write) -> None:
    path = write("ours.json", table_to_dict(ours))
    assert read_latency(path) == replace(ours, name="ours.json")


@pytest.mark.parametrize("tiny", ["proxyless", "resnet50d"], indirect=True)
def test_our_table_keeps_any_space(tiny: Space, operators_at: Operators, write: Write) -> None:
    side = tiny.resolutions[0]
    operators = {o.key: latency_of(o) for o in operators_at(tiny, side)}
    path = write("t.json", table_to_dict(LatencyTable("t", {side: operators}, space=tiny)))
    assert read_latency(path).space == tiny


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not a latency table of ours"),
        ({"version": VERSION + 1}, "has version 2"),
        ({"version": "1"}, "has version '1'"),
        ({"version": None}, "has version None"),
        ({"operators": {}}, "holds no table"),
        ({"operators": 3}, "holds no table"),
        ({"operators": {"a": -1}}, "a has the latency -1"),
        ({"operators": {"a": float("nan")}}, "a has the latency nan"),
        ({"operators": {"a": True}}, "a has the latency True"),
        ({"operators": {"a": 10**400}}, "a has the latency 1000"),
        ({"scale": float("nan")}, "scale nan"),
        ({"scale": 0}, r"scale 0\.0"),
        ({"scale": -1}, r"scale -1\.0"),
        ({"scale": 10**400}, "lacks or misstates"),
        ({"scale": None}, "lacks or misstates"),
        ({"offset": float("inf")}, "offset inf"),
        ({"resolutions": []}, r"resolutions \[\]"),
        ({"resolutions": 16}, "lacks or misstates"),
        ({"resolutions": [[16]]}, "lacks or misstates"),
        ({"resolutions": [float("inf")]}, "lacks or misstates"),
        ({"space": 3}, "lacks or misstates"),
        ({"space": {"name": "mobilenet_v9"}}, "unknown space 'mobilenet_v9'"),
        ({"facts": 3}, "lacks or misstates"),
    ],
)
def test_an_ill_formed_table_of_ours_is_refused(
    ours: LatencyTable, write: Write, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_latency(write("t.json", table_to_dict(ours) | changes))
    assert "t.json" in str(caught.value)


@pytest.mark.parametrize("key", ["version", "space", "resolutions", "scale", "offset", "facts"])
def test_a_table_of_ours_without_a_key_is_refused(
    ours: LatencyTable, write: Write, key: str
) -> None:
    values = table_to_dict(ours)
    del values[key]
    with pytest.raises(ConfigError, match=key):
        read_latency(write("t.json", values))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\udcff"])
def test_what_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="not readable JSON"):
        read_latency(tmp_path / "t.json")


def test_a_list_is_no_table_of_ours(write: Write) -> None:
    with pytest.raises(ConfigError, match="not a latency table of ours") as caught:
        read_latency(write("t.json", "[1]"))
    assert FORMAT in caught.value.expected


# --- the published Note10 tables ------------------------------------------------------------------


def test_the_published_tables_give_the_published_extremes(
    published: Callable[[str], Path],
) -> None:
    table = read_latency(published("note10"))
    assert table.resolutions == (160, 176, 192, 208, 224)
    assert {len(operators) for operators in table.by_resolution.values()} == {96}
    space = replace(published_space("mobilenet_v3", width=1.2), resolutions=table.resolutions)
    cost = table.cost(space.genome)
    assert cost.smallest[0] == pytest.approx(9.890, abs=5e-4)
    assert cost.largest[0] == pytest.approx(92.40, abs=5e-3)


def test_the_published_tables_do_not_fit_another_width(
    published: Callable[[str], Path],
) -> None:
    space = replace(published_space("mobilenet_v3", width=1.0), resolutions=(160,))
    with pytest.raises(ConfigError, match="lacks Conv-input:160x160x3-output:80x80x16"):
        read_latency(published("note10")).cost(space.genome)
