"""``opa-trt search run``: answers as JSON and as text, and what it refuses."""

from __future__ import annotations

import builtins
import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from opa_trt.builder import read_recipe
from opa_trt.search.accuracy_predictor import AccuracyPredictor
from opa_trt.search.latency_table import LatencyTable, table_to_dict
from opa_trt.search.strategies import STRATEGIES
from opa_trt.supernet import Arch, published_space, read_arch, space_from_dict
from opa_trt.supernet.space import Space
from opa_trt_cli.search.run import NAMES

QUICK = ("--generations", 4, "--population", 8)


@pytest.fixture
def space(recipe: Path) -> Space:
    """The tiny recipe's, with expand ratios and resolutions of its own."""
    made = read_recipe(recipe).make_space()
    return replace(made, resolutions=(16, 32), expand_choices=(2, 3))


def predictor_of(space: Space, inputs: int | None = None) -> AccuracyPredictor:
    """One random layer; more inputs than the space has codes where it is to stand for another."""
    code = space.genome.one_hot(np.zeros((1, len(space.genome)), dtype=np.int16))
    weight = np.random.default_rng(0).normal(0, 0.02, (1, inputs or code.shape[1]))
    layer = weight.astype(np.float32), np.array([0.7], dtype=np.float32)
    return AccuracyPredictor("random", [layer], space.resolutions, space)


def latencies(space: Space, side: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for term in space.terms():
        choices = [space.genome.genes[gene].choices for gene in term.genes[1:]]
        for values in product((side,), *choices):
            run = term.operators(*values)
            found |= {operator.key: 0.1 + operator.cost.macs * 1e-6 for operator in run}
    return found


@pytest.fixture
def accuracy(space: Space, here: Path) -> Path:
    """A predictor that knows its space."""
    predictor_of(space).save(here / "accuracy.safetensors")
    return here / "accuracy.safetensors"


@pytest.fixture
def latency(space: Space, here: Path) -> Path:
    """A table of ours."""
    operators = latencies(space, 16) | latencies(space, 32)
    table = LatencyTable("t", dict.fromkeys((16, 32), operators), 1.5, 0.2, space)
    path = here / "latency.json"
    path.write_text(json.dumps(table_to_dict(table)), encoding="utf-8")
    return path


@pytest.fixture
def phone(space: Space, here: Path) -> Path:
    """Published tables."""
    (here / "phone").mkdir()
    for side in (16, 32):
        table = {key: {"mean": mean, "count": 3} for key, mean in latencies(space, side).items()}
        (here / "phone" / f"{side}.yaml").write_text(yaml.safe_dump(table))
    return here / "phone"


def finite(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(finite, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str | bool) or (
        isinstance(value, int | float) and math.isfinite(value)
    )


# --- answers --------------------------------------------------------------------------------------


def test_the_strategies_are_those_of_the_library() -> None:
    assert tuple(STRATEGIES) == NAMES


@pytest.mark.parametrize("strategy", NAMES)
def test_json_is_a_list_with_an_object_a_target(
    call: Any, space: Space, accuracy: Path, latency: Path, strategy: str
) -> None:
    options = ("--strategy", strategy, "--targets", "5,2.5,5", "--json", *QUICK)
    called = call("search", "run", "--accuracy", accuracy, "--latency", latency, *options)
    assert (called.code, called.err) == (0, "")
    answers = json.loads(called.out)
    assert [answer["target"] for answer in answers] == [5, 2.5, 5]
    for answer in answers:
        assert set(answer) >= {"target", "latency", "accuracy", "seconds", "arch", "evaluated"}
        assert answer["unit"] == "ms"
        assert 0 < answer["latency"] <= answer["target"]
        assert space_from_dict(answer["space"]) == space
        space.validate(Arch.from_dict(answer["arch"]))
        assert finite(answer)


def test_text_has_a_line_a_target_and_says_that_accuracy_is_predicted(
    call: Any, accuracy: Path, phone: Path
) -> None:
    options = ("--latency", phone, "--targets", "5, 2.5", *QUICK)
    called = call("search", "run", "--accuracy", accuracy, *options)
    assert called.code == 0
    heading, first, second, _, note = called.out.splitlines()
    assert heading.split()[:3] == ["target", "ms", "ms"]
    assert (first.split()[0], second.split()[0]) == ("5", "2.5")
    assert "% " in first
    assert "accuracy is predicted" in note


def test_each_arch_is_written_where_export_reads_it(
    call: Any, here: Path, accuracy: Path, latency: Path, space: Space
) -> None:
    options = ("--latency", latency, "--targets", "5,2.5", "--out", "found/here", *QUICK)
    assert call("search", "run", "--accuracy", accuracy, *options).code == 0
    files = sorted((here / "found" / "here").iterdir())
    assert [path.name for path in files] == ["2.5ms.json", "5ms.json"]
    for path in files:
        answer = json.loads(path.read_text())
        assert read_arch(path) == (space, Arch.from_dict(answer["arch"]))


def test_archs_cannot_be_written_into_a_file(
    call: Any, here: Path, accuracy: Path, latency: Path
) -> None:
    (here / "found").write_text("mine")
    options = ("--latency", latency, "--targets", "5", "--out", "found", *QUICK)
    called = call("search", "run", "--accuracy", accuracy, *options)
    assert called.code == 2
    assert "found" in called.err
    assert (here / "found").read_text() == "mine"


def test_macs_are_whole_numbers_with_units(call: Any, space: Space, accuracy: Path) -> None:
    targets = "150k,0.2M,0.0003G,250000"
    options = ("--latency", "macs", "--targets", targets, "--json", *QUICK)
    called = call("search", "run", "--accuracy", accuracy, *options)
    answers = json.loads(called.out)
    assert [answer["target"] for answer in answers] == [150_000, 200_000, 300_000, 250_000]
    for answer in answers:
        assert answer["unit"] == "MACs"
        assert isinstance(answer["latency"], int)
        assert answer["latency"] == space.macs(Arch.from_dict(answer["arch"]))


def test_a_published_space_is_named_with_its_width(call: Any, here: Path) -> None:
    layer = {"0.weight": np.full((1, 128), 0.01), "0.bias": np.zeros(1)}
    np.savez(here / "p.npz", **layer)  # type: ignore[arg-type]
    options = ("--space", "mobilenet_v3", "--width", 1.2, "--latency", "macs")
    called = call(
        "search", "run", *options, "--accuracy", "p.npz", "--targets", "200M,0.3G", "--json", *QUICK
    )
    answers = json.loads(called.out)
    assert [answer["target"] for answer in answers] == [200_000_000, 300_000_000]
    for answer in answers:
        assert answer["space"]["width"] == 1.2
        macs = published_space("mobilenet_v3", width=1.2).macs(Arch.from_dict(answer["arch"]))
        assert macs == answer["latency"] <= answer["target"]


def test_the_space_of_a_recipe_is_named_by_its_file(call: Any, recipe: Path, here: Path) -> None:
    predictor_of(read_recipe(recipe).make_space()).save(here / "a.safetensors")
    options = ("--space", recipe, "--latency", "macs", "--targets", "1M", *QUICK)
    assert call("search", "run", "--accuracy", "a.safetensors", *options).code == 0


def test_a_seed_gives_the_same_answers(call: Any, accuracy: Path) -> None:
    options = ("--latency", "macs", "--targets", "200k,300k", "--json", "--seed", 3, *QUICK)
    calls = [call("search", "run", "--accuracy", accuracy, *options) for _ in range(2)]
    one, same = ([answer | {"seconds": 0} for answer in json.loads(called.out)] for called in calls)
    assert one == same


def test_it_searches_without_threadpoolctl(
    call: Any, accuracy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "threadpoolctl":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    options = ("--latency", "macs", "--targets", "200k", *QUICK)
    assert call("search", "run", "--accuracy", accuracy, *options).code == 0


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", NAMES)
def test_a_target_that_nothing_meets_ends_with_the_smallest_value(
    call: Any, space: Space, accuracy: Path, strategy: str
) -> None:
    options = ("--latency", "macs", "--targets", "300k,2", "--strategy", strategy, *QUICK)
    called = call("search", "run", "--accuracy", accuracy, *options)
    assert (called.code, called.out) == (2, "")
    assert "no arch of mobilenet_v3 meets 2 MACs" in called.err
    assert f"at least {space.macs(space.smallest()):g}" in called.err


def test_a_refused_search_leaves_no_folder(call: Any, accuracy: Path, here: Path) -> None:
    options = ("--latency", "macs", "--targets", "2", "--out", "found", *QUICK)
    assert call("search", "run", "--accuracy", accuracy, *options).code == 2
    assert not (here / "found").exists()


@pytest.mark.parametrize("targets", ["", "a", "5,", "5;6", "5ms", "M", "200X", "200MM", "2kM"])
def test_targets_that_are_no_numbers_are_refused(call: Any, accuracy: Path, targets: str) -> None:
    options = ("--latency", "macs", "--targets", targets)
    called = call("search", "run", "--accuracy", accuracy, *options)
    assert called.code == 2
    assert "is not a list of numbers such as" in called.err


@pytest.mark.parametrize("targets", ["0", "-5", "5,-1", "nan", "inf", "1e400"])
def test_targets_that_make_no_sense_are_refused(call: Any, accuracy: Path, targets: str) -> None:
    options = ("--latency", "macs", "--targets", targets)
    called = call("search", "run", "--accuracy", accuracy, *options)
    assert called.code == 2
    assert "above 0, finite" in called.err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--strategy", "hot", "'hot' is not one of"),
        ("--population", 3, "--population"),
        ("--generations", 0, "--generations"),
        ("--further", 0, "--further"),
        ("--seed", -1, "--seed"),
        ("--space", "mobilenet_v9", "unknown space 'mobilenet_v9'"),
        ("--space", "resnet50d", "accuracy.safetensors [16, 32]"),
        ("--accuracy", "none.npz", "none.npz does not exist"),
        ("--latency", "none", "none does not exist"),
    ],
)
def test_an_option_out_of_range_is_named(
    call: Any, accuracy: Path, option: str, value: object, message: str
) -> None:
    options = {"--accuracy": accuracy, "--latency": "macs", "--targets": "200k", option: value}
    pairs = [part for pair in options.items() for part in pair]
    called = call("search", "run", *pairs)
    assert (called.code, called.out) == (2, "")
    assert message in called.err


@pytest.mark.parametrize("left_out", ["--accuracy", "--latency", "--targets"])
def test_what_is_needed_is_asked_for(call: Any, accuracy: Path, left_out: str) -> None:
    options = {"--accuracy": accuracy, "--latency": "macs", "--targets": "200k"}
    del options[left_out]
    called = call("search", "run", *[part for pair in options.items() for part in pair])
    assert called.code == 2
    assert f"Missing option '{left_out}'" in called.err


def test_a_space_that_nothing_names_is_asked_for(call: Any, here: Path) -> None:
    layer = {"0.weight": np.full((1, 128), 0.01), "0.bias": np.zeros(1)}
    np.savez(here / "p.npz", **layer)  # type: ignore[arg-type]
    called = call("search", "run", "--accuracy", "p.npz", "--latency", "macs", "--targets", "5")
    assert called.code == 2
    assert "--space NAME" in called.err


def test_a_table_that_lacks_an_operator_says_how_to_measure_it(
    call: Any, space: Space, accuracy: Path, phone: Path
) -> None:
    path = phone / "16.yaml"
    table = yaml.safe_load(path.read_text())
    lost = next(key for key in table if key.startswith("Logits"))
    path.write_text(yaml.safe_dump({k: v for k, v in table.items() if k != lost}))
    called = call(
        "search", "run", "--accuracy", accuracy, "--latency", phone, "--targets", "5", *QUICK
    )
    assert called.code == 2
    assert f"lacks {lost} at resolution 16" in called.err
    assert "opa-trt search measure-latency" in called.err
