"""OFA's weights: equal logits, every style of keys, and every way a checkpoint can be wrong."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from opa_trt.errors import CheckpointError
from opa_trt.supernet import (
    Arch,
    MobileNetV3Space,
    ProxylessSpace,
    ResNet50DSpace,
    Space,
    Supernet,
    from_ofa_state_dict,
    ofa_classes,
    published_space,
    read_ofa_state_dict,
    to_ofa_state_dict,
)
from tests.supernet.published_networks import (
    CLASSES,
    TABLES,
    Choice,
    ResNetTable,
    State,
    Table,
    random_choice,
    random_state,
    subnet,
)

STEM = "first_conv.conv.weight"
MATRIX = "blocks.1.conv.depth_conv.conv.5to3_matrix"


@dataclass(frozen=True)
class Published:
    """A published super-network with random weights: under its keys, and imported."""

    table: Table | ResNetTable
    state: State
    space: Space
    supernet: Supernet


@pytest.fixture(scope="session", params=TABLES)
def published(request: pytest.FixtureRequest) -> Published:
    table = TABLES[request.param]
    space = published_space(table.space, width=table.width, classes=CLASSES)
    state = random_state(table)
    return Published(table, state, space, from_ofa_state_dict(state, space))


SMALL: dict[str, Space] = {
    "mobilenet_v3": MobileNetV3Space(
        classes=3,
        resolutions=(32,),
        depth_choices=(1, 2),
        expand_choices=(1, 2),
        stem_width=8,
        stage_widths=(8, 16),
        stage_strides=(1, 2),
        stage_act=("relu", "h_swish"),
        stage_squeeze_excite=(False, True),
        head_width=24,
        feature_width=32,
    ),
    "proxyless": ProxylessSpace(
        classes=3,
        resolutions=(32,),
        depth_choices=(1, 2),
        expand_choices=(1, 2),
        width=1.0,
        stem_width=8,
        stage_widths=(8, 16),
        stage_strides=(2, 1),
        feature_width=32,
    ),
    "resnet50d": ResNet50DSpace(
        classes=3,
        resolutions=(32,),
        base_depths=(1, 2),
        extra_depths=(0, 1),
        stem_width=16,
        stage_widths=(32, 64),
        stage_strides=(1, 2),
    ),
}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> Space:
    return SMALL[request.param]


@pytest.fixture
def tiny() -> Space:
    return SMALL["mobilenet_v3"]


@pytest.fixture
def state(tiny: Space, scrambled: Any) -> State:
    """Weights of the tiny space under published keys."""
    return to_ofa_state_dict(scrambled(tiny))


def assert_states_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def refusal(state_dict: Any, space: Space) -> str:
    with pytest.raises(CheckpointError) as caught:
        from_ofa_state_dict(state_dict, space)
    return str(caught.value)


# --- the same logits ------------------------------------------------------------------------------


def arch_of(space: Space, choice: Choice) -> Arch:
    """The arch that OFA writes as ``choice``."""
    if isinstance(space, ResNet50DSpace):
        stem, *extra = choice["d"]
        blocks = (base + more for base, more in zip(space.base_depths, extra, strict=True))
        return space.arch(
            resolution=choice["r"],
            depths=(stem // 2, *blocks),
            expand_ratios=choice["e"],
            widths=[space.width_choices[index] for index in choice["w"]],
        )
    return space.arch(
        resolution=choice["r"],
        depths=choice["d"],
        kernel_sizes=choice["ks"],
        expand_ratios=choice["e"],
    )


@pytest.mark.parametrize("seed", range(5))
@torch.no_grad()
def test_a_subnet_has_the_logits_of_the_published_one(
    published: Published, normal_images: Any, seed: int
) -> None:
    choice = random_choice(published.table, seed)
    arch, images = arch_of(published.space, choice), normal_images(choice["r"], seed=seed)
    reference = subnet(published.table, published.state, choice)
    expected = reference(images)
    assert expected.std(0).max() > 0.01  # the images are told apart
    for network in (published.supernet.extract(arch), lambda x: published.supernet(x, arch)):
        worst = (network(images) - expected).abs().max() / expected.abs().max()
        assert worst <= 1e-5
    assert published.space.params(arch) == sum(p.numel() for p in reference.parameters())


def test_published_weights_come_back_as_they_were(published: Published) -> None:
    back = to_ofa_state_dict(published.supernet)
    assert_states_equal(back, published.state)


def test_imported_networks_are_in_evaluation_mode(published: Published) -> None:
    assert not published.supernet.training


# --- every style ----------------------------------------------------------------------------------


def older(key: str) -> str:
    """As files from before the layers were nested call it."""
    key = re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.mobile_inverted_conv.", key)
    for part in ("conv", "bn", "linear"):
        key = key.replace(f".{part}.{part}.", f".{part}.")
    return key


def half_nested(key: str) -> str:
    """Old names of blocks, new nesting."""
    return re.sub(r"^(blocks\.\d+)\.conv\.", r"\1.mobile_inverted_conv.", key)


def renamed(name: Callable[[str], str]) -> Callable[[State], State]:
    return lambda state: {name(key): value for key, value in state.items()}


def without_counters(state: State) -> State:
    return {key: value for key, value in state.items() if "num_batches" not in key}


STYLES: dict[str, Callable[[State], Any]] = {
    "newest": lambda state: state,
    "older": renamed(older),
    "half nested": renamed(half_nested),
    "parallel": renamed(lambda key: f"module.{key}"),
    "parallel and older": renamed(lambda key: f"module.{older(key)}"),
    "wrapped": lambda state: {"epoch": 3, "state_dict": renamed(older)(state)},
    "without counters": without_counters,
}


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_read(small: Space, scrambled: Any, style: str) -> None:
    supernet = scrambled(small, seed=4)
    written = STYLES[style](to_ofa_state_dict(supernet))
    read = from_ofa_state_dict(written, small)
    assert_states_equal(read.state_dict(), supernet.state_dict())


def test_the_styles_differ() -> None:
    assert older("blocks.1.conv.depth_conv.conv.conv.weight") == (
        "blocks.1.mobile_inverted_conv.depth_conv.conv.weight"
    )
    assert older("blocks.0.conv1.bn.bn.bias") == "blocks.0.conv1.bn.bias"
    assert older("input_stem.1.conv.conv.conv.weight") == "input_stem.1.conv.conv.weight"
    assert older("classifier.linear.linear.bias") == "classifier.linear.bias"


def test_every_tensor_has_a_published_name(small: Space) -> None:
    names = small.published_names()
    assert names.keys() == Supernet(small).parts.state_dict().keys()
    assert len(set(names.values())) == len(names)


def test_half_precision_is_read_as_float32(tiny: Space, state: State) -> None:
    halved = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    read = from_ofa_state_dict(halved, tiny)
    assert {p.dtype for p in read.parameters()} == {torch.float32}
    weight = read.state_dict()["parts.stem.conv.weight"]
    assert torch.equal(weight, halved[STEM].float())


def test_nothing_is_shared_with_the_state_dict(tiny: Space, state: State) -> None:
    read = from_ofa_state_dict(state, tiny)
    state[STEM].zero_()
    written = to_ofa_state_dict(read)
    assert written[STEM].abs().sum() > 0
    written[STEM].zero_()
    assert read.state_dict()["parts.stem.conv.weight"].abs().sum() > 0


def test_the_global_generator_is_left_as_it_was(tiny: Space, state: State) -> None:
    before = torch.random.get_rng_state()
    from_ofa_state_dict(state, tiny)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- what was mapped ------------------------------------------------------------------------------


def without_matrices(state: State) -> State:
    return {key: value for key, value in state.items() if "matrix" not in key}


def test_the_report_counts_tensors(tiny: Space, state: State) -> None:
    found = read_ofa_state_dict(state, tiny)
    assert found.tensors == len(state) == len(found.supernet.parts.state_dict())
    assert found.identities == ()


def test_a_full_network_gets_identities_and_says_so(
    tiny: Space, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "opa_trt"):
        found = read_ofa_state_dict(without_matrices(state), tiny)
    assert found.identities == tuple(key for key in state if "matrix" in key)
    assert len(found.identities) == 8
    assert found.tensors == len(state) - 8
    assert "8 are the identity" in caplog.text
    written = to_ofa_state_dict(found.supernet)
    for key in found.identities:
        assert torch.equal(written[key], torch.eye(len(state[key])))


def test_a_network_without_elastic_kernels_has_nothing_to_fill(scrambled: Any) -> None:
    space = SMALL["resnet50d"]
    assert read_ofa_state_dict(to_ofa_state_dict(scrambled(space)), space).identities == ()


def test_the_classifier_says_the_classes(state: State) -> None:
    assert ofa_classes(state) == 3
    assert ofa_classes(STYLES["wrapped"](state)) == 3


def test_without_a_classifier_there_are_no_classes(state: State) -> None:
    del state["classifier.linear.bias"]
    with pytest.raises(CheckpointError, match=r"classifier\.linear\.bias"):
        ofa_classes(state)


# --- errors ---------------------------------------------------------------------------------------


def test_missing_tensors_are_named_and_counted(tiny: Space, state: State) -> None:
    for key in list(state)[:5]:
        del state[key]
    told = refusal(state, tiny)
    assert f"lacks 5: {STEM}, first_conv.bn.weight, first_conv.bn.bias …" in told
    assert "the tensors of mobilenet_v3 of width 1.0, 3 classes" in told
    assert "Remedy" in told


def test_a_matrix_that_is_missing_among_others_is_named(tiny: Space, state: State) -> None:
    del state[MATRIX]
    assert f"lacks 1: {MATRIX}" in refusal(state, tiny)


def test_an_unknown_tensor_is_named_as_it_is_called(tiny: Space, state: State) -> None:
    state["blocks.9.mobile_inverted_conv.extra.weight"] = torch.zeros(1)
    told = refusal(state, tiny)
    assert "has unknown 1: blocks.9.mobile_inverted_conv.extra.weight" in told


def test_a_prefix_that_not_all_share_is_unknown(tiny: Space, state: State) -> None:
    state[f"module.{STEM}"] = state.pop(STEM)
    told = refusal(state, tiny)
    assert f"lacks 1: {STEM}" in told
    assert f"has unknown 1: module.{STEM}" in told


def test_a_misshapen_tensor_is_named_with_both_shapes(tiny: Space, state: State) -> None:
    state[STEM] = torch.zeros(8, 3, 5, 5)
    told = refusal(state, tiny)
    assert f"has misshapen 1: {STEM} [8, 3, 5, 5] for [8, 3, 3, 3]" in told


def test_a_misshapen_counter_is_refused(tiny: Space, state: State) -> None:
    state["first_conv.bn.num_batches_tracked"] = torch.zeros(2, dtype=torch.int64)
    assert "first_conv.bn.num_batches_tracked [2] for []" in refusal(state, tiny)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_refused(tiny: Space, state: State, value: float) -> None:
    state[MATRIX][3, 2] = value
    assert f"NaN or infinity in 1 tensors: {MATRIX}" in refusal(state, tiny)


def test_a_value_too_large_for_float32_is_refused(tiny: Space, state: State) -> None:
    state[STEM] = state[STEM].double() * 1e300
    assert f"NaN or infinity in 1 tensors: {STEM}" in refusal(state, tiny)


@pytest.mark.parametrize("name", [older, half_nested])
def test_two_keys_for_one_tensor_are_both_named(
    tiny: Space, state: State, name: Callable[[str], str]
) -> None:
    key = "blocks.1.conv.inverted_bottleneck.conv.conv.weight"
    state[name(key)] = state[key].clone()
    told = refusal(state, tiny)
    assert key in told
    assert name(key) in told


@pytest.mark.parametrize(
    "value",
    [
        3,
        None,
        [1.0],
        torch.zeros(8, 3, 3, 3, dtype=torch.int64),
        torch.zeros(8, 3, 3, 3, device="meta"),
        torch.zeros(8, 3, 3, 3).to_sparse(),
    ],
    ids=["number", "none", "list", "integers", "meta", "sparse"],
)
def test_a_value_that_is_no_tensor_of_floats_is_named(
    tiny: Space, state: State, value: Any
) -> None:
    told = refusal(state | {STEM: value}, tiny)
    assert f"has 1 values of other kinds: {STEM}" in told


@pytest.mark.parametrize(
    "what",
    [{}, None, [torch.zeros(1)], {"state_dict": {}}, {"state_dict": 3}, {3: torch.zeros(1)}],
    ids=["empty", "none", "list", "empty inside", "number inside", "number as key"],
)
def test_what_is_no_state_dict_is_refused(tiny: Space, what: Any) -> None:
    told = refusal(what, tiny)
    assert "a state dict: tensors of floats by key" in told


# --- what it looks like ---------------------------------------------------------------------------

WRONG: dict[str, list[tuple[str, float | None]]] = {
    "mobilenet_v3 1.0": [("mobilenet_v3", 1.2), ("proxyless", 1.3), ("resnet50d", None)],
    "mobilenet_v3 1.2": [("mobilenet_v3", 1.0)],
    "proxyless 1.3": [("mobilenet_v3", 1.2), ("proxyless", 1.0)],
    "resnet50d": [("proxyless", 1.3)],
}


def test_weights_of_another_space_say_which(published: Published) -> None:
    table = published.table
    wide = "" if table.width is None else f" of width {table.width}"
    given = without_matrices(renamed(older)(published.state))
    for name, width in WRONG[f"{table.space} {table.width}" if wide else table.space]:
        told = refusal(given, published_space(name, width=width, classes=CLASSES))
        assert f"looks like {table.space}{wide}, {CLASSES} classes" in told


def test_another_number_of_classes_is_said(published: Published) -> None:
    table = published.table
    told = refusal(published.state, published_space(table.space, width=table.width, classes=1000))
    assert "misshapen 2: classifier.linear" in told
    assert f"{CLASSES} classes: name that" in told


def test_an_incomplete_checkpoint_looks_like_nothing_else(published: Published) -> None:
    some: State = {k: v for k, v in published.state.items() if not k.startswith("blocks.2.")}
    told = refusal(some, published.space)
    assert "lacks" in told
    assert "blocks.2." in told
    assert "looks like" not in told


def test_a_few_tensors_look_like_nothing(tiny: Space, state: State) -> None:
    some = {key: state[key] for key in ("classifier.linear.bias", "classifier.linear.weight")}
    assert "looks like" not in refusal(some, tiny)
