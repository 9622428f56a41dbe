"""Costs of whole populations: sums over operators, and their exact minimum and maximum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opa_trt.search import additive
from opa_trt.search.additive import AdditiveCost
from opa_trt.search.problem import macs_of
from opa_trt.supernet import Genome, MobileNetV3Space, Population, published_space
from opa_trt.supernet.operators import Operator
from opa_trt.supernet.space import Space

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True)
SIDES = (128, 164, 224)
NAMES = ("mobilenet_v3", "proxyless", "resnet50d")
FULL = {name: replace(published_space(name), resolutions=SIDES) for name in NAMES}
MACS = {name: AdditiveCost(space.genome, macs_of) for name, space in FULL.items()}
Bumpy = Callable[[int], additive.OperatorCost]


def raw_rows(genome: Genome, count: int, seed: int) -> Population:
    """Random rows whose genes that do not count are random too."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, genome.counts, (count, len(genome)), dtype=np.int16)


# --- sums -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_macs_of_a_population_are_those_of_each_arch(name: str) -> None:
    space = FULL[name]
    rows = space.genome.sample(40, np.random.default_rng(1))
    expected = [space.macs(space.genome.arch(row)) for row in rows]
    assert MACS[name](rows).tolist() == expected


@pytest.mark.parametrize("name", NAMES)
def test_parameters_of_a_population_are_those_of_each_arch(name: str) -> None:
    space = replace(FULL[name], resolutions=(160,))
    cost = AdditiveCost(space.genome, lambda operator, _: operator.cost.params)
    rows = space.genome.sample(40, np.random.default_rng(2))
    expected = [space.params(space.genome.arch(row)) for row in rows]
    assert cost(rows).tolist() == expected


def test_any_cost_is_the_sum_over_what_an_arch_runs(tiny: Space, bumpy: Bumpy) -> None:
    of = bumpy(3)
    cost = AdditiveCost(tiny.genome, of)
    for row in tiny.genome.sample(30, np.random.default_rng(3)):
        arch = tiny.genome.arch(row)
        run = [operator for part in tiny.operators(arch).values() for operator in part]
        expected = sum(of(operator, arch.resolution) for operator in run)
        assert cost(row[None])[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@PROPERTY
@given(seed=st.integers(0, 2**32 - 1))
def test_genes_that_do_not_count_cost_nothing(name: str, seed: int) -> None:
    genome = FULL[name].genome
    rows = raw_rows(genome, 5, seed)
    assert MACS[name](rows).tolist() == MACS[name](genome.canonical(rows)).tolist()


@PROPERTY
@given(seed=st.integers(0, 2**32 - 1), stages=st.integers(0, 5))
def test_macs_add_up_over_grafted_stages(seed: int, stages: int) -> None:
    space = FULL["mobilenet_v3"]
    base, other = map(space.genome.arch, raw_rows(space.genome, 2, seed))
    other = space.at(other, base.resolution)
    left, right, both = space.costs(base), space.costs(other), space.graft(base, other, stages)
    parts = ["stem", *(f"stage{stage + 1}" for stage in range(stages))]
    expected = sum((left if part in parts else right)[part].macs for part in left)
    assert MACS["mobilenet_v3"](space.genome.row(both)[None])[0] == expected


def test_an_arch_costs_the_same_to_the_bit_in_any_population(tiny: Space, bumpy: Bumpy) -> None:
    cost = AdditiveCost(tiny.genome, bumpy(4), scale=1.1, offset=0.3)
    rows = raw_rows(tiny.genome, 257, 4)
    alone = [cost(row[None])[0] for row in rows]
    assert cost(rows).tolist() == alone
    assert cost(np.asfortranarray(rows)).tolist() == alone
    assert cost(rows[::3]).tolist() == alone[::3]


def test_nobody_costs_nothing(tiny: Space, bumpy: Bumpy) -> None:
    cost = AdditiveCost(tiny.genome, bumpy(0))
    assert cost(np.empty((0, len(tiny.genome)), dtype=np.int16)).shape == (0,)


def test_scale_and_offset_apply_to_the_sum(mobile: Space, bumpy: Bumpy) -> None:
    of = bumpy(5)
    plain, scaled = (
        AdditiveCost(mobile.genome, of),
        AdditiveCost(mobile.genome, of, scale=2.5, offset=0.25),
    )
    rows = mobile.genome.sample(20, np.random.default_rng(5))
    np.testing.assert_allclose(scaled(rows), 0.25 + 2.5 * plain(rows), rtol=1e-14)
    assert scaled.smallest[0] == pytest.approx(0.25 + 2.5 * plain.smallest[0])


def test_each_operator_is_asked_for_once(mobile: Space) -> None:
    asked: list[tuple[Operator, int]] = []

    def of(operator: Operator, resolution: int) -> float:
        asked.append((operator, resolution))
        return 1.0

    AdditiveCost(mobile.genome, of)
    assert len(asked) == len(set(asked))


def test_what_the_cost_of_an_operator_raises_is_passed_on(mobile: Space) -> None:
    def of(operator: Operator, resolution: int) -> float:
        raise LookupError(operator.key)

    with pytest.raises(LookupError, match="Conv-input:16x16x3"):
        AdditiveCost(mobile.genome, of)


# --- exact places ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_published_tables_are_small_enough_for_float32(name: str) -> None:
    sizes = [
        factor.table.size for factor in AdditiveCost(published_space(name).genome, macs_of).factors
    ]
    assert sum(sizes) < additive.FLOAT32_EXACT / 100


def test_every_place_of_a_table_is_found(tiny: Space) -> None:
    cost = AdditiveCost(tiny.genome, lambda *_: 0.0)
    cost._table[:] = np.arange(len(cost._table))
    rows = raw_rows(tiny.genome, 300, 6)
    begin = 0
    expected = np.zeros(len(rows))
    for factor in cost.factors:
        places = rows[:, factor.genes].T.astype(np.int64)
        expected += begin + np.ravel_multi_index(tuple(places), factor.table.shape)
        begin += factor.table.size
    assert cost(rows).tolist() == expected.tolist()


def test_tables_beyond_float32_are_looked_up_in_float64(
    mobile: Space, bumpy: Bumpy, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, rows = bumpy(7), raw_rows(mobile.genome, 50, 7)
    narrow = AdditiveCost(mobile.genome, of)
    monkeypatch.setattr(additive, "FLOAT32_EXACT", sum(f.table.size for f in narrow.factors) - 1)
    wide = AdditiveCost(mobile.genome, of)
    assert (narrow._strides.dtype, wide._strides.dtype) == (np.float32, np.float64)
    assert narrow(rows).tolist() == wide(rows).tolist()


# --- extremes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_smallest_and_largest_are_those_of_all_archs(
    tiny: Space, bumpy: Bumpy, every_row: Callable[[Genome], Population], seed: int
) -> None:
    cost = AdditiveCost(tiny.genome, bumpy(seed), scale=0.5, offset=1.0)
    costs = cost(every_row(tiny.genome))
    assert cost.smallest[0] == pytest.approx(costs.min(), rel=1e-12)
    assert cost.largest[0] == pytest.approx(costs.max(), rel=1e-12)


def test_the_extreme_archs_cost_what_is_said(tiny: Space, bumpy: Bumpy) -> None:
    cost = AdditiveCost(tiny.genome, bumpy(8))
    for value, row in (cost.smallest, cost.largest):
        assert cost(row[None])[0] == value
        assert (tiny.genome.canonical(row[None])[0] == row).all()
        assert row.dtype == np.int16


@pytest.mark.parametrize("name", NAMES)
def test_macs_are_extreme_where_every_choice_is(name: str) -> None:
    space = FULL[name]
    assert MACS[name].smallest[0] == space.macs(space.smallest())
    assert MACS[name].largest[0] == space.macs(space.largest())


@pytest.mark.parametrize("name", NAMES)
def test_no_arch_of_a_published_space_is_beyond_the_extremes(name: str, bumpy: Bumpy) -> None:
    genome = FULL[name].genome
    cost = AdditiveCost(genome, bumpy(9))
    costs = cost(genome.sample(2000, np.random.default_rng(9)))
    assert cost.smallest[0] < costs.min()
    assert costs.max() < cost.largest[0]


def test_a_space_of_one_arch_has_one_cost(lonely: Space, bumpy: Bumpy) -> None:
    cost = AdditiveCost(lonely.genome, bumpy(10))
    assert cost.smallest[0] == cost.largest[0] > 0


def test_the_published_space_has_the_papers_macs() -> None:
    space: Any = replace(MobileNetV3Space(), resolutions=(224,))
    cost = AdditiveCost(space.genome, macs_of)
    assert (cost.smallest[0], cost.largest[0]) == (121_278_672, 566_170_656)
