"""Archs as values: canonical, hashable, readable, and the same after a trip through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opa_trt.errors import ArchError
from opa_trt.supernet import Arch

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)
ARCH = Arch(32, (1, 2), ((3,), (3, 5)), ((1,), (3, 6)))


@PROPERTY
@given(data=st.data())
def test_json_reads_back_what_to_dict_wrote(choices: Any, data: st.DataObject) -> None:
    _, arch = data.draw(choices)
    assert Arch.from_dict(json.loads(json.dumps(arch.to_dict()))) == arch


def test_widths_survive_the_round_trip() -> None:
    arch = Arch(32, (1,), ((3,),), ((1,),), widths=(0.65, 1))
    assert Arch.from_dict(arch.to_dict()) == arch


def test_widths_may_be_left_out_of_the_dictionary() -> None:
    values = ARCH.to_dict()
    del values["widths"]
    assert Arch.from_dict(values) == ARCH


@PROPERTY
@given(data=st.data())
def test_entries_beyond_the_depth_do_not_count(choices: Any, data: st.DataObject) -> None:
    space, arch = data.draw(choices)

    def flat(stages: Any, fillers: Any) -> list[Any]:
        rows = zip(space.slots, stages, strict=True)
        drawn = st.sampled_from(fillers)
        return [x for n, s in rows for x in (*s, *(data.draw(drawn) for _ in range(n - len(s))))]

    again = space.arch(
        resolution=arch.resolution,
        depths=arch.depths,
        kernel_sizes=flat(arch.kernel_sizes, space.kernel_choices),
        expand_ratios=flat(arch.expand_ratios, space.expand_choices),
    )
    assert again == arch
    assert hash(again) == hash(arch)


def test_an_arch_is_written_as_people_write_it() -> None:
    assert str(ARCH) == "r32 d1-2 k3-35 e1-36"


def test_a_fractional_ratio_is_written_short() -> None:
    assert str(Arch(16, (1,), ((3,),), ((0.25,),))) == "r16 d1 k3 e0.25"


@pytest.mark.parametrize("key", ["resolution", "depths", "kernel_sizes", "expand_ratios"])
def test_a_missing_key_is_refused(key: str) -> None:
    values = ARCH.to_dict()
    del values[key]
    with pytest.raises(ArchError, match="an arch has the keys"):
        Arch.from_dict(values)


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(ArchError, match="depth_list"):
        Arch.from_dict({**ARCH.to_dict(), "depth_list": [1]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resolution", "wide"),
        ("resolution", None),
        ("resolution", "32"),
        ("resolution", True),
        ("resolution", 32.5),
        ("resolution", float("inf")),
        ("resolution", float("nan")),
        ("depths", 2),
        ("depths", ["deep"]),
        ("depths", [1.5, 2]),
        ("kernel_sizes", [3, 5]),
        ("expand_ratios", [1, 3]),
        ("widths", 1),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ArchError, match="an arch cannot be read"):
        Arch.from_dict({**ARCH.to_dict(), key: value})


def test_an_arch_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ARCH.resolution = 64  # type: ignore[misc]
