"""OPA's online search: its table, its candidates, and what it makes of requirements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opa_trt.errors import ConfigError, InfeasibleBudget
from opa_trt.policies import Predictor
from opa_trt.search.online import MOST, OnlineSearch, Tails
from opa_trt.supernet import Arch, Genome, Population, Space, published_space

PUBLISHED = published_space("mobilenet_v3")
PIONEER = PUBLISHED.arch(resolution=192, depths=2, kernel_sizes=3, expand_ratios=4)
EXIT = 1e6  # MACs of the exit head


def pioneer_of(space: Space) -> Arch:
    """Of the largest resolution but one, and of the largest choices."""
    return space.largest(space.resolutions[-2])


def predictor(space: Space, seed: int = 0) -> Predictor:
    """One that has learned nothing: accuracies around a half."""
    draw = np.random.default_rng(seed)
    shapes = [(1 + space.encoding_size, 16), (16, 1)]
    first, last = (draw.normal(0, 0.4, shape).astype(np.float32) for shape in shapes)
    return Predictor((first, 0.3 * last), (np.zeros(16, np.float32), np.full(1, 0.5, np.float32)))


class Noted(Predictor):
    """A predictor that notes what it judges."""

    seen: list[npt.NDArray[np.float32]]

    def accuracies(
        self, estimated: float, codes: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        self.seen.append(codes)
        return super().accuracies(estimated, codes)


def noted(space: Space, seed: int = 0) -> Noted:
    made = predictor(space, seed)
    spy = Noted(made.weights, made.biases)
    object.__setattr__(spy, "seen", [])
    return spy


@pytest.fixture(scope="module")
def tails() -> Tails:
    """The published space behind a pioneer of two stages."""
    return Tails(PUBLISHED, PIONEER, 2)


@pytest.fixture(scope="module")
def search(tails: Tails) -> OnlineSearch:
    return OnlineSearch(tails, predictor(PUBLISHED), exit_macs=EXIT)


def little(space: Space, **options: int) -> OnlineSearch:
    """A search behind one stage of a little space."""
    return OnlineSearch(Tails(space, pioneer_of(space), 1), predictor(space), **options)


def macs_of(search: OnlineSearch, arch: Arch) -> float:
    return search.tails.genome.space.macs(arch) + search.pioneer_macs - search.tails.trunk_macs


# --- what is searched ---------------------------------------------------------------------------


def test_whatever_is_drawn_begins_with_the_pioneer(tiny: Space) -> None:
    base = pioneer_of(tiny)
    tails = Tails(tiny, base, 1)
    drawn = tails.genome.sample(40, np.random.default_rng(0))
    found = [tails.genome.arch(row) for row in tails.rows(drawn)]
    assert found == [tiny.graft(base, tails.genome.arch(row), 1) for row in drawn]


def test_codes_are_those_of_the_space_with_all_its_resolutions(tiny: Space) -> None:
    tails = Tails(tiny, pioneer_of(tiny), 1)
    rows = tails.rows(tails.genome.sample(20, np.random.default_rng(1)))
    wanted = [tiny.encode(tails.genome.arch(row)) for row in rows]
    np.testing.assert_array_equal(tails.codes(rows), np.stack(wanted))


def test_a_pioneer_of_a_resolution_that_is_not_sampled() -> None:
    tails = Tails(PUBLISHED, PUBLISHED.at(PIONEER, 100), 2)
    row = tails.rows(tails.genome.sample(1, np.random.default_rng(2)))
    arch = tails.genome.arch(row[0])
    np.testing.assert_array_equal(tails.codes(row)[0], PUBLISHED.encode(arch))
    assert tails.cost(row)[0] == PUBLISHED.macs(arch)


def test_the_trunk_is_stem_and_stages(tails: Tails) -> None:
    costs = list(PUBLISHED.costs(PIONEER).values())
    assert tails.trunk_macs == sum(cost.macs for cost in costs[:3])


@pytest.mark.parametrize("stages", [0, 2])
def test_a_pioneer_leaves_a_stage_at_least(mobile: Space, stages: int) -> None:
    with pytest.raises(ConfigError, match=f"pioneer of {stages} stages"):
        Tails(mobile, mobile.largest(), stages)


# --- mutations ----------------------------------------------------------------------------------


def changed_layers(genome: Genome, row: Population, mutant: Population) -> list[tuple[int, ...]]:
    """For every layer that differs, which of its genes (0: kernel, 1: expand ratio) do."""
    kinds = [genome.columns(kind) for kind in ("kernel", "expand") if genome.columns(kind)]
    differs = [
        tuple(i for i, c in enumerate(genes) if row[c] != mutant[c])
        for genes in zip(*kinds, strict=True)
    ]
    return [layer for layer in differs if layer]


@given(st.integers(0, 2**32))
def test_a_mutation_changes_one_gene_of_one_to_three_layers_of_the_tail(seed: int) -> None:
    tails, rng = Tails(PUBLISHED, PIONEER, 2), np.random.default_rng(seed)
    (row,) = tails.rows(tails.genome.sample(1, rng))
    for mutant in tails.mutants(row, 20, rng):
        layers = changed_layers(tails.genome, row, mutant)
        assert 1 <= len(layers) <= MOST
        assert all(len(layer) == 1 for layer in layers)
        arch = tails.genome.arch(mutant)
        assert arch.depths == tails.genome.arch(row).depths
        assert PUBLISHED.graft(PIONEER, arch, 2) == arch
        assert np.array_equal(tails.genome.canonical(mutant[None])[0], mutant)


def test_one_two_and_three_layers_are_changed_alike(tails: Tails) -> None:
    rng = np.random.default_rng(0)
    row = tails.genome.row(PUBLISHED.graft(PIONEER, PUBLISHED.largest(192), 2))
    mutants = tails.mutants(row, 3000, rng)
    counts = np.bincount([len(changed_layers(tails.genome, row, m)) for m in mutants])
    assert counts[1:] == pytest.approx([1000] * MOST, rel=0.1)


def test_mutations_reach_every_layer_and_both_of_its_genes(tails: Tails) -> None:
    row = tails.genome.row(PUBLISHED.graft(PIONEER, PUBLISHED.largest(192), 2))
    mutants = tails.mutants(row, 500, np.random.default_rng(0))
    reached = np.flatnonzero((mutants != row).any(axis=0))
    wanted = tails.genome.columns("kernel")[8:] + tails.genome.columns("expand")[8:]
    assert reached.tolist() == sorted(wanted)


def test_widths_and_what_is_not_there_stay(tiny: Space) -> None:
    tails, rng = Tails(tiny, pioneer_of(tiny), 1), np.random.default_rng(3)
    for row in tails.rows(tails.genome.sample(20, rng)):
        mutants = tails.mutants(row, 20, rng)
        assert (mutants != row).any(axis=1).all()
        kept = [0, *tails.genome.columns("depth"), *tails.genome.columns("width")]
        assert (mutants[:, kept] == row[kept]).all()


def test_a_tail_without_a_choice_is_copied(lonely: Space) -> None:
    tails = Tails(lonely, lonely.largest(), 1)
    (row,) = tails.rows(tails.genome.sample(1, np.random.default_rng(0)))
    assert (tails.mutants(row, 3, np.random.default_rng(0)) == row).all()


# --- the table ----------------------------------------------------------------------------------


def test_the_table_holds_a_thousand_archs_by_macs(search: OnlineSearch) -> None:
    archs = [search.tails.genome.arch(row) for row in search.table]
    assert len(set(archs)) == 1000
    assert all(PUBLISHED.graft(PIONEER, arch, 2) == arch for arch in archs)
    assert (np.diff(search.table_macs) >= 0).all()
    np.testing.assert_array_equal(search.table_macs, [macs_of(search, arch) for arch in archs])


def test_the_tables_ends_are_the_smallest_and_the_largest_of_all(
    tiny: Space, every_row: Callable[[Genome], Population]
) -> None:
    found = little(tiny)
    macs = found.tails.cost(found.tails.rows(every_row(found.tails.genome)))
    assert found.table_macs[[0, -1]].tolist() == [macs.min(), macs.max()]


# --- searches -----------------------------------------------------------------------------------


@given(st.floats(2.0, 12.0), st.floats(0.0, 1.0), st.integers(0, 100))
def test_an_answer_keeps_the_requirement(required: float, estimated: float, draw: int) -> None:
    found = OnlineSearch(
        Tails(PUBLISHED, PIONEER, 2), predictor(PUBLISHED), entries=50, candidates=20
    )
    pick = found.search(estimated, required, 1.0, draw=draw)
    assert pick.latency_ms <= required
    assert pick.macs == PUBLISHED.macs(pick.arch)
    assert pick.latency_ms == pytest.approx(pick.macs / found.pioneer_macs)
    (accuracy,) = predictor(PUBLISHED).accuracies(estimated, PUBLISHED.encode(pick.arch)[None])
    assert pick.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert PUBLISHED.graft(PIONEER, pick.arch, 2) == pick.arch


def test_the_same_draw_gives_the_same(search: OnlineSearch) -> None:
    assert search.search(0.7, 4.0, 1.0, draw=5) == search.search(0.7, 4.0, 1.0, draw=5)
    picks = {search.search(0.7, 4.0, 1.0, draw=draw).arch for draw in range(10)}
    assert len(picks) > 1


def test_the_pioneers_latency_says_what_the_machine_has_left(search: OnlineSearch) -> None:
    idle, busy = (search.search(0.7, 20.0, ms) for ms in (5.0, 8.0))
    assert busy.macs < idle.macs
    assert search.search(0.7, 2.0, 0.5) == replace(idle, latency_ms=idle.latency_ms / 10)


def test_the_allowance_is_left(search: OnlineSearch) -> None:
    kept = search.search(0.7, 4.0, 1.0, allowance_ms=0.5)
    assert kept.latency_ms <= 3.5
    assert kept == search.search(0.7, 3.5, 1.0)


def test_the_exit_head_counts_as_the_pioneers(tails: Tails) -> None:
    bare, with_head = (OnlineSearch(tails, predictor(PUBLISHED), exit_macs=m) for m in (0, EXIT))
    assert with_head.pioneer_macs == bare.pioneer_macs + EXIT
    np.testing.assert_array_equal(with_head.table_macs, bare.table_macs + EXIT)


def test_the_start_is_judged_with_its_mutations(tails: Tails) -> None:
    spy = noted(PUBLISHED)
    found = OnlineSearch(tails, spy, candidates=30)
    place = 500
    found.search(0.7, float(found.table_macs[place]) / found.pioneer_macs, 1.0)
    (codes,) = spy.seen
    start = tails.codes(found.table[place : place + 1])[0]
    assert any(np.array_equal(code, start) for code in codes)
    assert len(np.unique(codes, axis=0)) == len(codes) <= 31


def test_the_best_that_was_judged_and_fits_is_taken(tails: Tails) -> None:
    spy = noted(PUBLISHED)
    found = OnlineSearch(tails, spy)
    required = 4.0
    pick = found.search(0.7, required, 1.0)
    (codes,) = spy.seen
    archs = [PUBLISHED.decode(code) for code in codes]
    fits = [PUBLISHED.macs(arch) / found.pioneer_macs <= required for arch in archs]
    assert any(fits)
    assert not all(fits)
    assert pick.accuracy == spy.accuracies(0.7, codes)[fits].max()
    assert pick.judged == len(codes)


def test_what_is_met_by_no_candidate_is_met_by_one_of_the_table(tails: Tails) -> None:
    spy = noted(PUBLISHED)
    found = OnlineSearch(tails, spy, entries=2, candidates=5)
    low, high = found.table_macs / found.pioneer_macs
    required = high - 0.4 * (
        high - low
    )  # nearest to the largest, which few layers do not bring here
    pick = found.search(0.7, float(required), 1.0)
    assert len(spy.seen) == 2
    assert pick.latency_ms <= required


@pytest.mark.parametrize("draw", range(5))
def test_no_requirement_is_searched_without_end(tiny: Space, draw: int) -> None:
    found = little(tiny, candidates=4)
    for required in np.geomspace(found.table_macs[0], 4 * found.table_macs[-1], 30):
        assert found.search(0.5, float(required), float(found.pioneer_macs), draw=draw).judged <= 5


def test_a_space_of_one_arch_has_one_answer(lonely: Space) -> None:
    found = OnlineSearch(Tails(lonely, lonely.largest(), 1), predictor(lonely))
    pick = found.search(0.5, 1e3, 1.0)
    assert (pick.arch, pick.judged) == (lonely.largest(), 1)


# --- what cannot be met -------------------------------------------------------------------------


def test_what_cannot_be_met_says_what_can(
    tiny: Space, every_row: Callable[[Genome], Population]
) -> None:
    found = little(tiny)
    macs = found.tails.cost(found.tails.rows(every_row(found.tails.genome)))
    smallest = macs.min() / found.pioneer_macs + 0.25
    with pytest.raises(InfeasibleBudget) as refused:
        found.search(0.5, 0.999 * smallest, 1.0, allowance_ms=0.25)
    assert refused.value.smallest == pytest.approx(smallest, rel=1e-5)
    pick = found.search(0.5, refused.value.smallest, 1.0, allowance_ms=0.25)
    assert pick.macs == macs.min()


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_cannot_be_are_refused(search: OnlineSearch, bad: float) -> None:
    with pytest.raises(ConfigError):
        search.search(0.5, bad, 1.0)
    with pytest.raises(ConfigError):
        search.search(0.5, 1.0, bad)
    with pytest.raises(ConfigError):
        search.search(0.5, 1.0, 1.0, allowance_ms=bad or -1.0)


@pytest.mark.parametrize("options", [{"entries": 1}, {"candidates": 0}])
def test_a_search_needs_a_table_and_candidates(tails: Tails, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        OnlineSearch(tails, predictor(PUBLISHED), **options)


# --- latencies of any kind ----------------------------------------------------------------------


def by_depth(arch: Arch) -> float:
    """ms that have nothing to do with MACs but by the number of blocks."""
    return float(sum(arch.depths))


def test_a_latency_of_ones_own_is_kept(search: OnlineSearch) -> None:
    for required in (10.0, 12.0, 14.0):
        pick = search.search(0.6, required, 2.0, latency=by_depth)
        assert pick.latency_ms == by_depth(pick.arch) <= required


def test_a_latency_of_ones_own_that_is_in_proportion_gives_the_same(search: OnlineSearch) -> None:
    def proportional(arch: Arch) -> float:
        return macs_of(search, arch) * (1.0 / search.pioneer_macs)

    for required in (2.5, 4.0, 5.0):
        wanted = search.search(0.6, required, 1.0)
        assert search.search(0.6, required, 1.0, latency=proportional) == wanted


def test_no_more_latencies_are_asked_for_than_are_needed(search: OnlineSearch) -> None:
    asked: list[Arch] = []

    def quick(arch: Arch) -> float:
        asked.append(arch)
        return 0.1

    pick = search.search(0.6, 4.0, 1.0, latency=quick)
    assert asked == [pick.arch]


def test_a_latency_of_ones_own_that_nothing_meets_says_what_the_table_can(
    search: OnlineSearch,
) -> None:
    with pytest.raises(InfeasibleBudget) as refused:
        search.search(0.6, 9.0, 1.0, latency=by_depth)
    assert refused.value.smallest == 10.0  # two blocks in each of five stages
    assert sum(search.search(0.6, 10.0, 1.0, latency=by_depth).arch.depths) == 10
