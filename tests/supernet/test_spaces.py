"""What holds in every space: costs, extraction, populations, codes. Most of it on small ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from opa_trt.errors import ArchError, ConfigError, UnknownNameError
from opa_trt.supernet import (
    Arch,
    Cost,
    ProxylessSpace,
    ResNet50DSpace,
    Space,
    Supernet,
    published_space,
    space_from_dict,
    space_names,
)
from opa_trt.supernet.registry import published_spaces

PROPERTY = settings(max_examples=30, deadline=None, derandomize=True)
PROXYLESS = ProxylessSpace()
RESNET = ResNet50DSpace()


@st.composite
def proxyless_spaces(draw: st.DrawFn) -> Space:
    stages = draw(st.integers(2, 3))
    return ProxylessSpace(
        classes=draw(st.integers(2, 5)),
        resolutions=draw(st.sampled_from([(16,), (16, 20), (20, 28, 32)])),
        depth_choices=draw(st.sampled_from([(1,), (1, 2), (2, 3), (1, 3)])),
        kernel_choices=draw(st.sampled_from([(3,), (3, 5), (3, 5, 7), (3, 7)])),
        expand_choices=draw(st.sampled_from([(2,), (1, 2), (3, 4, 6)])),
        width=draw(st.sampled_from([0.5, 1.0, 1.3])),
        stem_width=draw(st.sampled_from([8, 16])),
        stem_stride=draw(st.sampled_from([1, 2])),
        first_width=draw(st.sampled_from([8, 16])),
        stage_widths=tuple(draw(st.sampled_from([8, 16, 24])) for _ in range(stages)),
        stage_strides=tuple(draw(st.sampled_from([1, 2])) for _ in range(stages)),
        feature_width=draw(st.sampled_from([16, 24])),
    )


@st.composite
def resnet_spaces(draw: st.DrawFn) -> Space:
    stages = draw(st.integers(1, 3))
    return ResNet50DSpace(
        classes=draw(st.integers(2, 5)),
        resolutions=draw(st.sampled_from([(32,), (32, 36), (44, 48, 52)])),
        expand_choices=draw(st.sampled_from([(0.25,), (0.2, 0.25, 0.35), (0.5, 1)])),
        width_choices=draw(st.sampled_from([(1.0,), (0.65, 0.8, 1.0), (0.5, 1.0)])),
        base_depths=tuple(draw(st.integers(1, 2)) for _ in range(stages)),
        extra_depths=draw(st.sampled_from([(0,), (0, 1), (1, 2), (0, 2)])),
        stem_width=draw(st.sampled_from([16, 32])),
        stage_widths=tuple(draw(st.sampled_from([16, 32, 64])) for _ in range(stages)),
        stage_strides=tuple(draw(st.sampled_from([1, 2])) for _ in range(stages)),
    )


SPACES = st.one_of(proxyless_spaces(), resnet_spaces())


@st.composite
def rows(draw: st.DrawFn, space: Space) -> Any:
    """A canonical row of the space's genome."""
    row = [draw(st.integers(0, int(count) - 1)) for count in space.genome.counts]
    return space.genome.canonical(np.array([row], dtype=np.int16))[0]


@st.composite
def choices(draw: st.DrawFn) -> tuple[Space, Arch]:
    """A small space and one of its archs."""
    space = draw(SPACES)
    return space, space.genome.arch(draw(rows(space)))


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the largest value: what is summed cancels."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found / scale, expected / scale, atol=1e-5, rtol=0)


@torch.no_grad()
def counted(module: nn.Module, x: Tensor) -> tuple[Cost, Tensor]:
    """What hooks on the layers count for one image, and the output."""
    macs = []

    def add(layer: Any, _: Any, out: Tensor) -> None:
        macs.append(layer.weight[0].numel() * out[0].numel())

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    out = module.eval()(x)
    for hook in hooks:
        hook.remove()
    return Cost(sum(macs), sum(p.numel() for p in module.parameters())), out


# --- the published spaces -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "macs", "params"),
    [
        (RESNET.largest(224), 7_491_643_904, 48_105_992),
        (RESNET.smallest(224), 962_192_128, 6_539_280),
    ],
    ids=["largest", "smallest"],
)
def test_resnet50d_costs_what_was_published(arch: Arch, macs: int, params: int) -> None:
    assert (RESNET.macs(arch), RESNET.params(arch)) == (macs, params)


def test_proxyless_costs_what_was_published() -> None:
    assert PROXYLESS.macs(PROXYLESS.smallest(224)) == 265_526_256
    assert PROXYLESS.macs(PROXYLESS.largest(224)) == 1_004_908_032


def test_proxyless_has_the_published_channels() -> None:
    outputs = [next(PROXYLESS.blocks(stage, 1)).outputs for stage in range(6)]
    assert outputs == [32, 56, 104, 128, 248, 416]
    assert (PROXYLESS.stem_channels, PROXYLESS.first_block.outputs) == (40, 24)
    assert PROXYLESS.channels(PROXYLESS.feature_width) == 1664
    assert sum(PROXYLESS.slots) == 21


def test_resnet50d_has_the_published_channels() -> None:
    channels = [tuple(RESNET.channels(e, w) for w in RESNET.width_choices) for e in range(6)]
    assert channels == [
        (24, 24, 32),
        (40, 48, 64),
        (168, 208, 256),
        (336, 408, 512),
        (664, 816, 1024),
        (1328, 1640, 2048),
    ]


def test_the_last_stage_of_proxyless_always_has_one_block() -> None:
    assert PROXYLESS.depth_options == (*((2, 3, 4),) * 5, (1,))
    assert PROXYLESS.arch(depths=3).depths == (3, 3, 3, 3, 3, 1)


def test_resnet50d_has_depths_of_the_stem_and_the_stages() -> None:
    assert RESNET.depth_options == ((0, 1), (2, 3, 4), (2, 3, 4), (4, 5, 6), (2, 3, 4))
    arch = RESNET.arch(depths=5, widths=0.8)
    assert (arch.depths, arch.widths) == ((1, 4, 4, 5, 4), (0.8,) * 6)


def test_every_space_is_published_by_name() -> None:
    assert space_names() == ["mobilenet_v3", "proxyless", "resnet50d"]
    found = [(space.name, space.to_dict().get("width")) for space in published_spaces(9)]
    assert found == [
        ("mobilenet_v3", 1.0),
        ("mobilenet_v3", 1.2),
        ("proxyless", 1.3),
        ("resnet50d", None),
    ]
    assert {space.classes for space in published_spaces(9)} == {9}


def test_a_published_space_takes_a_width_where_it_has_one() -> None:
    assert published_space("proxyless").to_dict()["width"] == 1.3
    assert published_space("mobilenet_v3", width=1.2).to_dict()["width"] == 1.2
    assert published_space("resnet50d", width=1.0) == RESNET
    with pytest.raises(ConfigError, match=r"width 1\.2 for space resnet50d"):
        published_space("resnet50d", width=1.2)


def test_an_unknown_published_space_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="proxyless"):
        published_space("proxylessnas")


# --- networks -------------------------------------------------------------------------------------


@PROPERTY
@given(choice=choices())
@torch.no_grad()
def test_an_extracted_network_equals_the_elastic_forward(
    scrambled: Any, normal_images: Any, choice: tuple[Space, Arch]
) -> None:
    space, arch = choice
    supernet, images = scrambled(space), normal_images(arch.resolution)
    logits = supernet(images, arch)
    assert logits.shape == (2, space.classes)
    assert_same(supernet.extract(arch)(images), logits)


@PROPERTY
@given(choice=choices())
def test_costs_of_every_part_equal_an_independent_count(
    normal_images: Any, choice: tuple[Space, Arch]
) -> None:
    space, arch = choice
    out, found = normal_images(arch.resolution, count=1), {}
    for name, part in Supernet(space).extract(arch).named_children():
        found[name], out = counted(part, out)
    assert found == space.costs(arch)


@PROPERTY
@given(choice=choices())
def test_every_operator_built_alone_costs_what_it_says(choice: tuple[Space, Arch]) -> None:
    space, arch = choice
    for run in space.operators(arch).values():
        for operator in run:
            cost, _ = counted(operator.build(), torch.zeros(1, *operator.input_shape))
            assert cost == operator.cost, operator.key


@PROPERTY
@given(choice=choices(), level=st.integers(0, 2))
@torch.no_grad()
def test_sorting_channels_keeps_the_largest_networks_function(
    scrambled: Any, normal_images: Any, choice: tuple[Space, Arch], level: int
) -> None:
    space, _ = choice
    supernet, largest = scrambled(space), space.largest()
    images = normal_images(largest.resolution)
    before = supernet(images, largest)
    supernet.sort_channels(level)
    assert_same(supernet(images, largest), before)


def test_training_reaches_every_weight_of_the_largest(scrambled: Any, normal_images: Any) -> None:
    space = ResNet50DSpace(
        classes=3, resolutions=(32,), base_depths=(1,), stage_widths=(32,), stage_strides=(1,)
    )
    supernet = scrambled(space)
    supernet(normal_images(32), space.largest()).square().sum().backward()
    assert [name for name, p in supernet.named_parameters() if p.grad is None] == []


# --- archs and populations ------------------------------------------------------------------------


@PROPERTY
@given(space=SPACES, seed=st.integers(0, 2**16))
def test_a_sample_lies_in_the_space(space: Space, seed: int) -> None:
    arch = space.sample(np.random.default_rng(seed))
    space.validate(arch)
    assert arch.resolution in space.resolutions
    assert space.genome.arch(space.genome.row(arch)) == arch


@PROPERTY
@given(space=SPACES, seed=st.integers(0, 2**16))
def test_a_sampled_population_is_canonical(space: Space, seed: int) -> None:
    genome = space.genome
    population = genome.sample(8, np.random.default_rng(seed))
    archs = [genome.arch(row) for row in population]
    assert np.array_equal(genome.rows(archs), population)
    assert np.array_equal(genome.canonical(population), population)


@PROPERTY
@given(data=st.data())
def test_a_row_reads_back_its_arch(data: st.DataObject) -> None:
    space = data.draw(SPACES)
    row = data.draw(rows(space))
    arch = space.genome.arch(row)
    assert np.array_equal(space.genome.row(arch), row)
    assert Arch.from_dict(arch.to_dict()) == arch


@PROPERTY
@given(data=st.data())
def test_equal_archs_have_equal_rows_and_no_others(data: st.DataObject) -> None:
    space = data.draw(SPACES)
    first, second = data.draw(rows(space)), data.draw(rows(space))
    same = space.genome.arch(first) == space.genome.arch(second)
    assert same == np.array_equal(first, second)


@PROPERTY
@given(data=st.data())
def test_one_hot_marks_the_choice_of_every_gene_that_counts(data: st.DataObject) -> None:
    space = data.draw(SPACES)
    genome, row = space.genome, data.draw(rows(space))
    code = genome.one_hot(row[None])[0]
    assert len(code) == sum(genome.counts[column] for column in genome.one_hot_columns)
    place, active = 0, genome.active(row[None])[0]
    for column in genome.one_hot_columns:
        bits = code[place : place + genome.counts[column]]
        expected = [float(active[column] and i == row[column]) for i in range(len(bits))]
        assert bits.tolist() == expected
        place += len(bits)


@PROPERTY
@given(choice=choices())
def test_decoding_undoes_encoding(choice: tuple[Space, Arch]) -> None:
    space, arch = choice
    code = space.encode(arch)
    assert code.shape == (space.encoding_size,)
    assert 0 <= code.min() <= code.max() <= 1
    assert space.decode(code) == arch
    assert space.decode(code.astype(np.float16)) == arch


def test_the_published_spaces_encode_in_so_many_numbers() -> None:
    assert PROXYLESS.encoding_size == 1 + 6 + 2 * 21
    assert RESNET.encoding_size == 1 + 5 + 6 + 18


@PROPERTY
@given(data=st.data())
def test_a_graft_keeps_the_first_stages(data: st.DataObject) -> None:
    space = data.draw(SPACES)
    base, other = (space.genome.arch(data.draw(rows(space))) for _ in range(2))
    stages = data.draw(st.integers(0, len(space.slots)))
    arch = space.graft(base, other, stages)
    deep, wide = space.stem_depths + stages, space.stem_widths + stages
    assert arch.resolution == base.resolution
    assert arch.depths == base.depths[:deep] + other.depths[deep:]
    assert arch.widths == base.widths[:wide] + other.widths[wide:]
    assert arch.expand_ratios == base.expand_ratios[:stages] + other.expand_ratios[stages:]


@PROPERTY
@given(choice=choices())
@torch.no_grad()
def test_a_graft_shares_what_runs_in_its_first_stages(
    scrambled: Any, choice: tuple[Space, Arch]
) -> None:
    space, base = choice
    arch = space.graft(base, space.largest(), 1)
    first, second = (scrambled(space).extract(each) for each in (base, arch))
    for part in ("stem", "stage1"):
        states = [getattr(net, part).state_dict() for net in (first, second)]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@PROPERTY
@given(space=SPACES)
def test_a_dictionary_reads_back_the_space(space: Space) -> None:
    assert space_from_dict(space.to_dict()) == space


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel_choices": (3,)}, "kernel_choices"),
        ({"base_depths": (2, 2)}, "base_depths has 2 entries"),
        ({"stage_strides": (1,)}, "stage_strides has 1 entries"),
        ({"base_depths": (2, 2, 0, 2)}, "base_depths"),
        ({"extra_depths": (-1, 0)}, "extra_depths"),
        ({"extra_depths": (1, 0)}, "extra_depths"),
        ({"extra_depths": ()}, "extra_depths"),
        ({"stem_width": 0}, "stem_width"),
        ({"width_choices": (1.0, 0.8)}, "width_choices"),
        ({"width_choices": ()}, "width_choices"),
    ],
)
def test_a_resnet50d_that_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ResNet50DSpace(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (2, 2, 2, 2, 2)}, "depth of the stem"),
        ({"depths": (1, 5, 2, 4, 2)}, "depth of stage 1"),
        ({"depths": (2, 2, 4, 2)}, "depths has 4 entries"),
        ({"widths": (1.0,) * 5}, "widths has 5 entries"),
        ({"widths": 0.7}, "width 1"),
        ({"expand_ratios": 0.3}, "expand ratio in stage 1"),
        ({"kernel_sizes": (3,)}, "kernel_sizes has 1 entries"),
    ],
)
def test_an_arch_outside_resnet50d_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchError, match=message):
        RESNET.arch(**changes)


def test_an_arch_of_another_space_is_refused() -> None:
    with pytest.raises(ArchError):
        RESNET.validate(PROXYLESS.largest())
    with pytest.raises(ArchError):
        PROXYLESS.validate(RESNET.largest())


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("mobilenet_v3", {"widths": 1.0}, "widths has one number"),
        ("proxyless", {"widths": [1.0]}, "widths has 1 entries"),
        ("resnet50d", {"kernel_sizes": 3}, "kernel_sizes has one number"),
    ],
)
def test_a_choice_that_a_space_does_not_have_is_refused(
    name: str, choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchError, match=message):
        published_space(name).arch(**choices)
