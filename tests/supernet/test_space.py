"""Spaces: what they offer and refuse, how archs are drawn, joined, encoded and counted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opa_trt.errors import ArchError, ConfigError, UnknownNameError
from opa_trt.supernet import Arch, Cost, MobileNetV3Space, space_from_dict

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
PUBLISHED = MobileNetV3Space()

# OFA, Table 1: depth, expand ratio, kernel size: parameters, MACs at 224 x 224.
TABLE_1 = {
    (2, 3, 3): (3_410_792, 121_278_672),
    (2, 3, 7): (3_493_352, 151_290_192),
    (2, 6, 3): (4_672_808, 222_604_704),
    (2, 6, 7): (4_837_928, 282_627_744),
    (4, 3, 3): (4_371_928, 226_193_808),
    (4, 3, 7): (4_554_328, 292_708_368),
    (4, 6, 3): (7_299_960, 433_141_536),
    (4, 6, 7): (7_664_760, 566_170_656),
}


# --- costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", TABLE_1)
def test_costs_are_those_of_ofa_table_1(column: tuple[int, int, int]) -> None:
    depth, expand, kernel = column
    arch = PUBLISHED.arch(resolution=224, depths=depth, expand_ratios=expand, kernel_sizes=kernel)
    assert (PUBLISHED.params(arch), PUBLISHED.macs(arch)) == TABLE_1[column]


@pytest.mark.parametrize(
    ("width", "stem", "head"), [(1.0, 16, (160, 960, 1280)), (1.2, 24, (192, 1152, 1536))]
)
def test_the_published_widths_have_the_published_channels(
    width: float, stem: int, head: tuple[int, int, int]
) -> None:
    space = replace(PUBLISHED, width=width)
    assert space.stem_channels == stem
    assert space.head_channels == head


def test_width_1_2_has_the_published_stages() -> None:
    space = replace(PUBLISHED, width=1.2)
    outputs = [next(space.blocks(stage, 1)).outputs for stage in range(5)]
    assert outputs == [32, 48, 96, 136, 192]


def test_costs_name_the_parts_in_order() -> None:
    parts = ["stem", "stage1", "stage2", "stage3", "stage4", "stage5", "head"]
    assert list(PUBLISHED.costs(PUBLISHED.largest())) == parts


def test_costs_add_up() -> None:
    assert Cost(1, 2) + Cost(10, 20) == Cost(11, 22)


# --- archs from choices -------------------------------------------------------------------------


def test_what_is_left_out_is_the_largest(tiny_space: Any) -> None:
    space = tiny_space()
    expected = Arch(20, (2, 2), ((5, 5), (5, 5)), ((4, 4), (4, 4)))
    assert space.arch() == space.largest() == expected


def test_the_smallest_has_the_smallest_of_everything(tiny_space: Any) -> None:
    assert tiny_space().smallest() == Arch(16, (1, 1), ((3,), (3,)), ((1,), (1,)))


def test_the_smallest_and_the_largest_take_a_resolution(tiny_space: Any) -> None:
    space = tiny_space()
    assert space.smallest(36).resolution == space.largest(36).resolution == 36


def test_flat_lists_are_cut_stage_by_stage(tiny_space: Any) -> None:
    arch = tiny_space().arch(depths=[1, 2], kernel_sizes=[3, 5, 5, 3], expand_ratios=[1, 2, 4, 2])
    assert arch.kernel_sizes == ((3,), (5, 3))
    assert arch.expand_ratios == ((1,), (4, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": [1]}, "depths has 1 entries"),
        ({"kernel_sizes": [3, 5]}, "kernel_sizes has 2 entries"),
        ({"expand_ratios": [1, 2, 4, 1, 2]}, "expand_ratios has 5 entries"),
        ({"depths": 3}, "depth of stage 1 is 3"),
        ({"depths": [1, -1]}, "depth of stage 2 is -1"),
        ({"kernel_sizes": 7}, "kernel size in stage 1 is 7"),
        ({"expand_ratios": [1, 1, 3, 1]}, "expand ratio in stage 2 is 3"),
        ({"resolution": 12}, "resolution 12"),
        ({"resolution": 30}, "resolution 30"),
    ],
)
def test_a_choice_outside_the_space_is_named(
    tiny_space: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArchError, match=message):
        tiny_space().arch(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1,)}, "depths has 1 entries"),
        ({"kernel_sizes": ((3,), (3, 5))}, "stage 2 has depth 1"),
        ({"kernel_sizes": ((3,),)}, "stage 1 has depth 1"),
        ({"expand_ratios": ((), (1,))}, "stage 1 has depth 1, but expand ratios"),
        ({"widths": (1,)}, "widths"),
    ],
)
def test_an_arch_that_does_not_fit_together_is_refused(
    tiny_space: Any, changes: dict[str, Any], message: str
) -> None:
    space = tiny_space()
    with pytest.raises(ArchError, match=message):
        space.validate(replace(space.smallest(), **changes))


def test_a_resolution_between_those_sampled_is_valid(tiny_space: Any) -> None:
    space = tiny_space()
    space.validate(space.smallest(40))


# --- drawing and joining ------------------------------------------------------------------------


@PROPERTY
@given(data=st.data(), seed=st.integers(0, 10_000))
def test_a_sample_lies_in_the_space(choices: Any, data: st.DataObject, seed: int) -> None:
    space, _ = data.draw(choices)
    arch = space.sample(np.random.default_rng(seed))
    space.validate(arch)
    assert arch.resolution in space.resolutions


def test_the_same_generator_draws_the_same_archs() -> None:
    first, second = (np.random.default_rng(4) for _ in range(2))
    assert [PUBLISHED.sample(first) for _ in range(5)] == [
        PUBLISHED.sample(second) for _ in range(5)
    ]


def test_only_the_largest_are_drawn_where_so_many_are_asked_for() -> None:
    draw = np.random.default_rng(0)
    archs = [
        PUBLISHED.sample(draw, resolution=160, largest={"depth": 1, "kernel": 2, "expand": 1})
        for _ in range(20)
    ]
    assert {depth for arch in archs for depth in arch.depths} == {4}
    assert {k for arch in archs for stage in arch.kernel_sizes for k in stage} == {5, 7}
    assert {e for arch in archs for stage in arch.expand_ratios for e in stage} == {6}


def test_samples_reach_every_choice(tiny_space: Any) -> None:
    space, draw = tiny_space(), np.random.default_rng(0)
    archs = [space.sample(draw) for _ in range(60)]
    assert {arch.resolution for arch in archs} == set(space.resolutions)
    assert {depth for arch in archs for depth in arch.depths} == set(space.depth_choices)
    kernels = {k for arch in archs for stage in arch.kernel_sizes for k in stage}
    ratios = {e for arch in archs for stage in arch.expand_ratios for e in stage}
    assert (kernels, ratios) == (set(space.kernel_choices), set(space.expand_choices))


def test_a_sample_holds_plain_numbers() -> None:
    assert json.dumps(PUBLISHED.sample(np.random.default_rng(0)).to_dict())


def test_a_graft_keeps_the_first_stages_and_the_resolution(tiny_space: Any) -> None:
    space = tiny_space()
    grafted = space.graft(space.smallest(16), space.largest(20), 1)
    assert grafted == Arch(16, (1, 2), ((3,), (5, 5)), ((1,), (4, 4)))


def test_a_graft_of_another_space_is_refused(tiny_space: Any) -> None:
    space = tiny_space()
    with pytest.raises(ArchError, match="depth of stage 2 is 4"):
        space.graft(space.smallest(), tiny_space(depth_choices=(4,)).largest(), 1)


# --- encodings ----------------------------------------------------------------------------------


def test_the_published_space_encodes_in_46_numbers() -> None:
    assert PUBLISHED.encoding_size == 46
    assert PUBLISHED.encode(PUBLISHED.largest()).shape == (46,)


def test_the_largest_arch_encodes_as_ones() -> None:
    code = PUBLISHED.encode(PUBLISHED.largest())
    assert code.dtype == np.float32
    np.testing.assert_array_equal(code, 1)


def test_slots_that_the_depth_leaves_out_encode_as_zeros(tiny_space: Any) -> None:
    code = tiny_space().encode(tiny_space().smallest())
    np.testing.assert_allclose(code, [0.6, 0, 0.6, 0, 0.25, 0, 0.25, 0, 0.5, 0.5, 0.8], rtol=1e-6)


@PROPERTY
@given(data=st.data())
def test_decoding_undoes_encoding(choices: Any, data: st.DataObject) -> None:
    space, arch = data.draw(choices)
    code = space.encode(arch)
    assert code.shape == (space.encoding_size,)
    assert ((code >= 0) & (code <= 1)).all()
    assert space.decode(code) == arch


def test_decoding_forgives_half_precision() -> None:
    arch = PUBLISHED.sample(np.random.default_rng(1))
    assert PUBLISHED.decode(PUBLISHED.encode(arch).astype(np.float16)) == arch


def test_a_code_of_another_length_is_refused() -> None:
    with pytest.raises(ArchError, match=r"a code of shape \(3,\)"):
        PUBLISHED.decode([0, 0, 1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 20, 40, 45])
def test_a_code_with_a_value_that_is_no_number_is_refused(place: int, value: float) -> None:
    code = PUBLISHED.encode(PUBLISHED.largest())
    code[place] = value
    with pytest.raises(ArchError):
        PUBLISHED.decode(code)


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 0.85), (0, 0), (20, 0.9), (40, 0.4), (40, 2), (41, 0), (45, 0.99), (45, 0), (45, -1)],
)
def test_a_code_that_no_arch_has_is_refused(place: int, value: float) -> None:
    code = PUBLISHED.encode(PUBLISHED.largest())
    code[place] = value
    with pytest.raises(ArchError):
        PUBLISHED.decode(code)


def test_a_code_with_something_beyond_the_depth_is_refused() -> None:
    code = PUBLISHED.encode(PUBLISHED.smallest())
    code[3] = 1
    with pytest.raises(ArchError):
        PUBLISHED.decode(code)


# --- spaces that cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["resolutions", "depth_choices", "kernel_choices", "expand_choices"]
)
@pytest.mark.parametrize("values", [(), (5, 3), (3, 3), (0, 3), (-1,)])
def test_choices_are_positive_and_ascend(
    tiny_space: Any, key: str, values: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match=f"{key} = "):
        tiny_space(**{key: values})


def test_an_even_kernel_is_refused(tiny_space: Any) -> None:
    with pytest.raises(ConfigError, match=r"kernel_choices = \[3, 4\]"):
        tiny_space(kernel_choices=(3, 4))


@pytest.mark.parametrize("resolutions", [(12, 16), (16, 30)])
def test_a_resolution_that_no_arch_may_have_is_refused(
    tiny_space: Any, resolutions: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match="resolutions = "):
        tiny_space(resolutions=resolutions)


@pytest.mark.parametrize("key", ["stage_strides", "stage_act", "stage_squeeze_excite"])
def test_every_stage_has_its_own_entry(tiny_space: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} has 1 entries"):
        tiny_space(**{key: getattr(tiny_space(), key)[:1]})


def test_an_unknown_activation_is_named(tiny_space: Any) -> None:
    with pytest.raises(ConfigError, match="swich"):
        tiny_space(stage_act=("relu", "swich"))


def test_slots_follow_from_the_depths(tiny_space: Any) -> None:
    assert tiny_space().slots == (2, 2)


@pytest.mark.parametrize(
    "key", ["classes", "width", "stem_width", "stem_stride", "head_width", "feature_width"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_positive(tiny_space: Any, key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{key} = {value}"):
        tiny_space(**{key: value})


@pytest.mark.parametrize("width", [float("nan"), float("inf")])
def test_a_width_is_a_finite_number(tiny_space: Any, width: float) -> None:
    with pytest.raises(ConfigError, match="width = "):
        tiny_space(width=width)


@pytest.mark.parametrize("key", ["stage_widths", "stage_strides"])
def test_sizes_of_stages_are_positive(tiny_space: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} = "):
        tiny_space(**{key: (8, 0)})


def test_a_space_has_a_stage(tiny_space: Any) -> None:
    with pytest.raises(ConfigError, match="stage_widths"):
        tiny_space(stage_widths=(), stage_strides=(), stage_act=(), stage_squeeze_excite=())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", "ten"),
        ("classes", 2.5),
        ("width", "0.5"),
        ("depth_choices", (1.5, 2)),
        ("stage_widths", (8, "16")),
        ("stage_squeeze_excite", ("no", "yes")),
        ("resolutions", 32),
    ],
)
def test_a_parameter_of_the_wrong_type_is_named(tiny_space: Any, key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        tiny_space(**{key: value})


def test_lists_become_tuples(tiny_space: Any) -> None:
    assert tiny_space(resolutions=[16, 20], stage_widths=[8, 16]) == tiny_space()


def test_squeeze_excite_may_be_written_as_0_and_1(tiny_space: Any) -> None:
    assert tiny_space(stage_squeeze_excite=(0, 1)) == tiny_space()


# --- on disk ------------------------------------------------------------------------------------


@PROPERTY
@given(data=st.data())
def test_json_reads_back_the_space(choices: Any, data: st.DataObject) -> None:
    space, _ = data.draw(choices)
    assert space_from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_what_is_left_out_has_the_published_value() -> None:
    assert space_from_dict({"name": "mobilenet_v3"}) == PUBLISHED


def test_an_unknown_space_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mobilenet_v3'"):
        space_from_dict({"name": "mobilenet_v2"})


@pytest.mark.parametrize("values", [{"classes": 10}, {"name": 3}, {"name": ["mobilenet_v3"]}])
def test_a_space_without_a_name_is_unknown(values: dict[str, Any]) -> None:
    with pytest.raises(UnknownNameError, match="unknown space"):
        space_from_dict(values)


def test_an_unknown_parameter_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'kernel_choices'"):
        space_from_dict({"name": "mobilenet_v3", "kernel_choice": [3]})


@pytest.mark.parametrize(("key", "value"), [("resolutions", ["a"]), ("stage_widths", 24)])
def test_an_ill_typed_parameter_is_a_config_error(key: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        space_from_dict({"name": "mobilenet_v3", key: value})
