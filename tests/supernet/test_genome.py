"""Archs as rows of small integers: there and back, which genes count, codes, sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opa_trt.errors import ArchError
from opa_trt.supernet import Arch, Population, published_space
from opa_trt.supernet.genome import Genome

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
NAMES = ("mobilenet_v3", "proxyless", "resnet50d")
SPACES = {name: published_space(name) for name in NAMES}
every_space = pytest.mark.parametrize("name", NAMES)
SEEDS = st.integers(0, 2**32 - 1)


def raw_rows(genome: Genome, count: int, seed: int) -> Population:
    """Random rows whose genes that do not count are random too."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, genome.counts, (count, len(genome)), dtype=np.int16)


# --- there and back -------------------------------------------------------------------------------


@every_space
@PROPERTY
@given(seed=SEEDS)
def test_a_canonical_row_is_read_back_from_its_arch(name: str, seed: int) -> None:
    genome = SPACES[name].genome
    row = genome.sample(1, np.random.default_rng(seed))[0]
    assert genome.row(genome.arch(row)).tolist() == row.tolist()


@every_space
@PROPERTY
@given(seed=SEEDS)
def test_an_arch_is_read_back_from_its_row(name: str, seed: int) -> None:
    space = SPACES[name]
    arch = space.sample(np.random.default_rng(seed))
    assert space.genome.arch(space.genome.row(arch)) == arch


@every_space
@PROPERTY
@given(seed=SEEDS)
def test_genes_that_do_not_count_change_nothing(name: str, seed: int) -> None:
    genome = SPACES[name].genome
    rows = raw_rows(genome, 3, seed)
    canonical = genome.canonical(rows)
    assert [*map(genome.arch, rows)] == [*map(genome.arch, canonical)]
    assert (genome.one_hot(rows) == genome.one_hot(canonical)).all()
    assert (genome.canonical(canonical) == canonical).all()


@every_space
def test_smallest_and_largest_are_the_ends_of_every_gene(name: str) -> None:
    genome = SPACES[name].genome
    assert not genome.row(SPACES[name].smallest()).any()
    assert (genome.row(SPACES[name].largest()) == genome.counts - 1).all()


def test_rows_are_one_a_line() -> None:
    genome = SPACES["proxyless"].genome
    rows = genome.sample(4, np.random.default_rng(0))
    assert (genome.rows([genome.arch(row) for row in rows]) == rows).all()
    assert genome.rows([genome.arch(rows[0])]).dtype == np.int16


def test_a_resolution_that_is_not_sampled_has_no_row() -> None:
    space = SPACES["mobilenet_v3"]
    with pytest.raises(ArchError, match="resolution 260"):
        space.genome.row(space.largest(260))


@pytest.mark.parametrize(
    "changes",
    [
        {"depths": (4, 4, 4, 4)},
        {"depths": (4, 4, 4, 4, 5)},
        {"widths": (1.0,)},
        {"kernel_sizes": ()},
        {"kernel_sizes": ((7,) * 5,) * 5},
        {"kernel_sizes": ((7,) * 3,) * 5},
        {"expand_ratios": ((5,) * 4,) * 5},
    ],
)
def test_an_arch_of_another_space_has_no_row(changes: dict[str, Any]) -> None:
    space = SPACES["mobilenet_v3"]
    with pytest.raises(ArchError):
        space.genome.row(replace(space.largest(), **changes))


# --- which genes count ----------------------------------------------------------------------------


@every_space
@PROPERTY
@given(seed=SEEDS)
def test_as_many_blocks_count_as_the_depth_says(name: str, seed: int) -> None:
    space, genome = SPACES[name], SPACES[name].genome
    row = raw_rows(genome, 1, seed)
    depths = genome.arch(row[0]).depths[space.stem_depths :]
    expected = [b < depth for depth, s in zip(depths, space.slots, strict=True) for b in range(s)]
    active = genome.active(row)[0]
    assert active[genome.columns("expand")].tolist() == expected
    if space.kernel_choices:
        assert active[genome.columns("kernel")].tolist() == expected


@every_space
def test_all_but_block_genes_always_count(name: str) -> None:
    genome = SPACES[name].genome
    active = genome.active(np.zeros((1, len(genome)), dtype=np.int16))[0]
    for kind in ("resolution", "depth", "width"):
        assert active[genome.columns(kind)].all()


@every_space
def test_what_counts_in_an_arch_is_what_counts_in_its_row(name: str) -> None:
    space, genome = SPACES[name], SPACES[name].genome
    arch = space.sample(np.random.default_rng(3))
    assert (genome.counted(arch) == genome.active(genome.row(arch)[None])[0]).all()


@every_space
def test_populations_stay_int16(name: str) -> None:
    genome = SPACES[name].genome
    rows = raw_rows(genome, 2, 0)
    assert genome.canonical(rows).dtype == np.int16
    assert genome.sample(2, np.random.default_rng(0)).dtype == np.int16


def test_a_space_may_have_more_resolutions_than_a_byte_counts() -> None:
    space = replace(SPACES["mobilenet_v3"], resolutions=tuple(range(32, 2032, 4)))
    row = space.genome.row(space.largest())
    assert row[0] == 499
    assert space.genome.arch(row).resolution == 2028
    assert space.genome.one_hot(row[None]).sum() == 41


# --- codes ----------------------------------------------------------------------------------------


def published_code(arch: Arch, resolutions: tuple[int, ...]) -> list[int]:
    """The published accuracy predictor's inputs for a MobileNetV3 arch, written out."""
    code: list[int] = []
    for stages, choices in ((arch.kernel_sizes, (3, 5, 7)), (arch.expand_ratios, (3, 4, 6))):
        for stage in stages:
            for block in range(4):
                kept = block < len(stage)
                code += [int(kept and stage[block] == choice) for choice in choices]
    return code + [int(arch.resolution == side) for side in resolutions]


@PROPERTY
@given(seed=SEEDS)
def test_one_hot_is_what_the_published_predictor_reads(seed: int) -> None:
    sides = tuple(range(112, 225, 16))
    space = replace(SPACES["mobilenet_v3"], resolutions=sides)
    arch = space.sample(np.random.default_rng(seed))
    code = space.genome.one_hot(space.genome.row(arch)[None])[0]
    assert code.dtype == np.float32
    assert code.astype(int).tolist() == published_code(arch, sides)
    assert len(code) == 128


def test_one_hot_of_resnet50d_has_ratios_widths_stem_and_resolution() -> None:
    space = replace(SPACES["resnet50d"], resolutions=(128, 224))
    arch = space.arch(
        resolution=128,
        depths=[0, 2, 2, 4, 2],
        expand_ratios=0.25,
        widths=[0.65, 0.8, 1.0, 0.65, 0.8, 1.0],
    )
    code = space.genome.one_hot(space.genome.row(arch)[None])[0].astype(int).tolist()
    blocks = [b < depth for depth, slots in ((2, 4), (2, 4), (4, 6), (2, 4)) for b in range(slots)]
    expected = [value for kept in blocks for value in (0, int(kept), 0)]
    expected += [1, 0, 0, 0, 1, 0, 0, 0, 1] * 2
    assert code == [*expected, 1, 0, 1, 0]


@every_space
def test_different_archs_have_different_codes(name: str) -> None:
    genome = SPACES[name].genome
    rows = np.unique(genome.sample(500, np.random.default_rng(0)), axis=0)
    assert len(np.unique(genome.one_hot(rows), axis=0)) == len(rows)


# --- sampling -------------------------------------------------------------------------------------


@every_space
def test_every_choice_is_drawn_evenly_where_it_counts(name: str) -> None:
    genome = SPACES[name].genome
    rows = genome.sample(6000, np.random.default_rng(0))
    active = genome.active(rows)
    for column, count in enumerate(genome.counts.tolist()):
        drawn = rows[active[:, column], column]
        shares = np.bincount(drawn, minlength=count) / len(drawn)
        assert len(shares) == count
        # Five standard deviations.
        assert np.abs(shares - 1 / count).max() < 5 * (count * len(drawn)) ** -0.5


@every_space
def test_samples_are_canonical_and_seeded(name: str) -> None:
    genome = SPACES[name].genome
    rows = genome.sample(50, np.random.default_rng(4))
    assert (genome.canonical(rows) == rows).all()
    assert (genome.sample(50, np.random.default_rng(4)) == rows).all()


def test_columns_are_found_by_kind() -> None:
    genome = SPACES["resnet50d"].genome
    assert genome.columns("kernel") == []
    assert genome.columns("depth") == [1, 2, 3, 4, 5]
    assert genome.index("width", 2) == genome.columns("width")[2]
