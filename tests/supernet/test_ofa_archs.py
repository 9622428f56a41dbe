"""Archs in OFA's forms: dictionaries, published configurations, and every way they can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opa_trt.errors import ArchError
from opa_trt.supernet import Arch, Space, published_space, read_arch, space_names
from opa_trt.supernet.net_configs import arch_of, space_of

PUBLISHED: list[dict[str, Any]] = json.loads(
    Path(__file__).with_name("specialized.json").read_text(encoding="utf-8")
)
BESIDE = Path(__file__).parents[3] / "shared" / "data" / "ofa" / "specialized"
# OFA, Table 1: (depth, expand ratio, kernel) to parameters and MACs at 224x224.
TABLE_1 = {
    (2, 3, 3): (3410792, 121278672),
    (2, 3, 7): (3493352, 151290192),
    (2, 6, 3): (4672808, 222604704),
    (2, 6, 7): (4837928, 282627744),
    (4, 3, 3): (4371928, 226193808),
    (4, 3, 7): (4554328, 292708368),
    (4, 6, 3): (7299960, 433141536),
    (4, 6, 7): (7664760, 566170656),
}
# One network of OFA's published code: its dictionary, what it builds (input, output, stride,
# ratio, middle channels of every bottleneck), and its parameters and MACs, counted there.
RESNET_OFA = {"d": [2, 1, 0, 2, 1], "e": [0.2, 0.25, 0.35] * 6, "w": [0, 2, 1, 0, 2, 1], "r": [224]}
RESNET_STEM = (24, 24, 64)
RESNET_BLOCKS = (
    (64, 208, 1, 0.2, 40), (208, 208, 1, 0.25, 56), (208, 208, 1, 0.35, 72),
    (208, 336, 2, 0.25, 88), (336, 336, 1, 0.35, 120),
    (336, 1024, 2, 0.35, 360), (1024, 1024, 1, 0.2, 208), (1024, 1024, 1, 0.25, 256),
    (1024, 1024, 1, 0.35, 360), (1024, 1024, 1, 0.2, 208), (1024, 1024, 1, 0.25, 256),
    (1024, 1640, 2, 0.35, 576), (1640, 1640, 1, 0.2, 328), (1640, 1640, 1, 0.25, 408),
)  # fmt: skip
RESNET_COSTS = (3348134592, 21112784)

Alter = Callable[[dict[str, Any]], None]


# --- published configurations, rebuilt in their own layout --------------------------------------


def conv(inputs: int, outputs: int, kernel: int, act: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "ConvLayer", "kernel_size": kernel, "stride": 1, "dilation": 1, "groups": 1,
        "bias": False, "has_shuffle": False, "in_channels": inputs, "out_channels": outputs,
        "use_bn": True, "act_func": act, "dropout_rate": 0, "ops_order": "weight_bn_act", **more,
    }  # fmt: skip


def identity(channels: int) -> dict[str, Any]:
    return {
        "name": "IdentityLayer", "in_channels": [channels], "out_channels": [channels],
        "use_bn": False, "act_func": None, "dropout_rate": 0, "ops_order": "weight_bn_act",
    }  # fmt: skip


def linear(features: int, classes: int = 1000) -> dict[str, Any]:
    return {
        "name": "LinearLayer", "in_features": features, "out_features": classes, "bias": True,
        "use_bn": False, "act_func": None, "dropout_rate": 0, "ops_order": "weight_bn_act",
    }  # fmt: skip


def block(row: list[Any]) -> dict[str, Any]:
    inputs, outputs, kernel, stride, ratio, middle, act, attention, shortcut = row
    return {
        "name": "MobileInvertedResidualBlock",
        "mobile_inverted_conv": {
            "name": "MBInvertedConvLayer", "in_channels": inputs, "out_channels": outputs,
            "kernel_size": kernel, "stride": stride, "expand_ratio": ratio,
            "mid_channels": middle, "act_func": act, "use_se": bool(attention),
        },
        "shortcut": identity(outputs) if shortcut else None,
    }  # fmt: skip


def config_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The published file that an entry of specialized.json was taken from."""
    stem, last = entry["stem"], entry["blocks"][-1][1]
    mobile = entry["family"] == "MobileNetV3"
    act = "h_swish" if mobile else "relu6"
    config = {
        "name": entry["family"],
        "bn": {"momentum": 0.1, "eps": 1e-5 if mobile else 1e-3},
        "first_conv": conv(3, stem, 3, act, stride=2),
        "blocks": [block(row) for row in entry["blocks"]],
    }
    if not mobile:
        mix = conv(last, 1664, 1, act)
        return {**config, "feature_mix_layer": mix, "classifier": linear(1664)}
    wide, features = {16: (960, 1280), 24: (1152, 1536)}[stem]
    return {
        **config,
        "final_expand_layer": conv(last, wide, 1, act),
        "feature_mix_layer": conv(wide, features, 1, act, use_bn=False),
        "classifier": linear(features),
    }


def resnet_config() -> dict[str, Any]:
    """What OFAResNets.get_active_net_config gives for RESNET_OFA."""
    first, middle, last = RESNET_STEM
    residual = {
        "name": "ResidualBlock",
        "conv": conv(first, middle, 3, "relu"),
        "shortcut": identity(middle),
    }
    blocks = [
        {
            "name": "ResNetBottleneckBlock", "in_channels": inputs, "out_channels": outputs,
            "kernel_size": 3, "stride": stride, "expand_ratio": ratio, "mid_channels": between,
            "act_func": "relu", "groups": 1, "downsample_mode": "avgpool_conv",
        }
        for inputs, outputs, stride, ratio, between in RESNET_BLOCKS
    ]  # fmt: skip
    stem = [conv(3, first, 3, "relu", stride=2), residual, conv(middle, last, 3, "relu")]
    return {
        "name": "ResNets",
        "bn": {"momentum": 0.1, "eps": 1e-5, "ws_eps": None},
        "input_stem": stem,
        "blocks": blocks,
        "classifier": linear(1640),
    }


def costs(space: Space, arch: Arch) -> tuple[int, int]:
    return space.macs(arch), space.params(arch)


@pytest.fixture(scope="module")
def spaces() -> dict[str, Space]:
    return {name: published_space(name) for name in space_names()}


@pytest.fixture(scope="module")
def mobile(spaces: dict[str, Space]) -> Space:
    return spaces["mobilenet_v3"]


# --- dictionaries -------------------------------------------------------------------------------


@pytest.mark.parametrize(("choices", "expected"), TABLE_1.items())
def test_numbers_stand_for_all_entries(mobile: Space, choices: Any, expected: Any) -> None:
    depth, ratio, kernel = choices
    arch = Arch.from_ofa({"ks": kernel, "e": ratio, "d": depth, "r": 224}, mobile)
    assert costs(mobile, arch) == expected[::-1]


@pytest.mark.parametrize("name", space_names())
def test_what_is_written_is_read_back(spaces: dict[str, Space], name: str) -> None:
    space, rng = spaces[name], np.random.default_rng(0)
    for _ in range(20):
        arch = space.sample(rng)
        assert Arch.from_ofa(json.loads(json.dumps(arch.to_ofa(space))), space) == arch


def test_lists_have_an_entry_a_slot_and_the_smallest_where_there_is_no_block(
    mobile: Space,
) -> None:
    arch = mobile.arch(depths=[2, 3, 4, 2, 4], kernel_sizes=7, expand_ratios=6)
    written = arch.to_ofa(mobile)
    assert written["ks"] == [7, 7, 3, 3, 7, 7, 7, 3, 7, 7, 7, 7, 7, 7, 3, 3, 7, 7, 7, 7]
    assert written["e"] == [6, 6, 3, 3, 6, 6, 6, 3, 6, 6, 6, 6, 6, 6, 3, 3, 6, 6, 6, 6]
    assert (written["d"], written["r"]) == ([2, 3, 4, 2, 4], [224])
    assert set(written) == {"ks", "e", "d", "r"}


@pytest.mark.parametrize(
    "side", [{"r": 160}, {"r": [160]}, {"image_size": 160}, {"image_size": [160]}]
)
def test_every_spelling_of_the_resolution(mobile: Space, side: dict[str, Any]) -> None:
    assert Arch.from_ofa({"ks": 3, "e": 3, "d": 2, **side}, mobile).resolution == 160


def test_without_a_resolution_the_largest_is_taken(mobile: Space) -> None:
    assert Arch.from_ofa({"ks": 3, "e": 3, "d": 2}, mobile).resolution == 224


def test_wid_is_ignored_where_it_says_nothing(mobile: Space) -> None:
    Arch.from_ofa({"wid": None, "ks": 3, "e": 3, "d": 2, "r": 224}, mobile)


def test_slots_that_the_depth_leaves_out_may_hold_what_the_encoders_write(mobile: Space) -> None:
    kernels = [3, 3, 0, None] * 5
    arch = Arch.from_ofa({"ks": kernels, "e": [4, 4, 0, 0] * 5, "d": 2}, mobile)
    assert arch == Arch.from_ofa({"ks": 3, "e": 4, "d": 2}, mobile)


@pytest.mark.parametrize("depths", [[2, 3, 4, 2, 3], [2, 3, 4, 2, 3, 1], [2, 3, 4, 2, 3, 4]])
def test_proxyless_ends_in_one_block_whatever_the_list_says(
    spaces: dict[str, Space], depths: list[int]
) -> None:
    arch = Arch.from_ofa({"ks": 3, "e": 3, "d": depths}, spaces["proxyless"])
    assert arch.depths == (2, 3, 4, 2, 3, 1)


def test_resnets_depths_are_extra_blocks_and_its_widths_are_indices(
    spaces: dict[str, Space],
) -> None:
    arch = Arch.from_ofa(RESNET_OFA, spaces["resnet50d"])
    assert arch.depths == (1, 3, 2, 6, 3)
    assert arch.widths == (0.65, 1.0, 0.8, 0.65, 1.0, 0.8)
    assert costs(spaces["resnet50d"], arch) == RESNET_COSTS
    written = arch.to_ofa(spaces["resnet50d"])
    assert (written["d"], written["w"]) == (RESNET_OFA["d"], RESNET_OFA["w"])


@pytest.mark.parametrize(
    ("extreme", "expected"),
    [((2, 0.35, 2), (7491643904, 48105992)), ((0, 0.2, 0), (962192128, 6539280))],
)
def test_resnets_extremes(spaces: dict[str, Space], extreme: Any, expected: Any) -> None:
    depth, ratio, width = extreme
    arch = Arch.from_ofa({"d": depth, "e": ratio, "w": width, "r": 224}, spaces["resnet50d"])
    assert costs(spaces["resnet50d"], arch) == expected


WRONG: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "unknown key": ("mobilenet_v3", {"x": 1}, "'x' = 1", "ks, e, d"),
    "wid that counts": ("mobilenet_v3", {"wid": 1.2}, "'wid' = 1.2", "ks, e, d"),
    "no kernels": ("mobilenet_v3", {"ks": None}, "no 'ks'", "ks, e, d"),
    "widths of a fixed width": ("mobilenet_v3", {"w": [0] * 6}, "'w'", "ks, e, d"),
    "a short list": ("mobilenet_v3", {"ks": [3] * 19}, "ks has 19 entries", "20 entries"),
    "no list": ("mobilenet_v3", {"e": "346"}, "e is '346'", "a list of 20 entries"),
    "a kernel": ("mobilenet_v3", {"ks": [3, 9] * 10}, "ks[1] is 9", "one of [3, 5, 7]"),
    "no number": ("mobilenet_v3", {"ks": [True] * 20}, "ks[0] is True", "one of [3, 5, 7]"),
    "a ratio": ("mobilenet_v3", {"e": 5}, "e[0] is 5", "one of [3, 4, 6]"),
    "a ratio left out": ("mobilenet_v3", {"e": [4] * 19 + [5], "d": 2}, "e[19] is 5", "[3, 4, 6]"),
    "a depth": ("mobilenet_v3", {"d": [2, 2, 1, 2, 2]}, "d[2] is 1", "one of [2, 3, 4]"),
    "a depth that no stage has": ("mobilenet_v3", {"d": 9}, "d[0] is 9", "one of [2, 3, 4]"),
    "one for proxyless": ("proxyless", {"d": [4] * 4 + [5, 1]}, "d[4] is 5", "one of [2, 3, 4]"),
    "a last stage too deep": ("proxyless", {"d": [4] * 5 + [5]}, "d[5] is 5", "one of [1]"),
    "too many depths": ("mobilenet_v3", {"d": [2] * 6}, "d has 6 entries", "5 entries"),
    "a resolution": ("mobilenet_v3", {"r": [130]}, "r is [130]", "multiple of 4"),
    "half a pixel": ("mobilenet_v3", {"r": 160.5}, "r is 160.5", "whole pixels"),
    "two resolutions": ("mobilenet_v3", {"r": [128, 160]}, "r has 2 entries", "1 entry"),
    "they differ": ("mobilenet_v3", {"r": 128, "image_size": 160}, "image_size is 160", "one"),
    "proxyless depths": ("proxyless", {"d": [2] * 4}, "d has 4 entries", "5 or 6 entries"),
    "a last stage of none": ("proxyless", {"d": [2] * 5 + [0]}, "d[5] is 0", "one of [1]"),
    "the stem": ("resnet50d", {"d": [1, 0, 0, 0, 0]}, "d[0] is 1", "one of [0, 2]"),
    "extra blocks": ("resnet50d", {"d": [0, 0, 3, 0, 0]}, "d[2] is 3", "one of [0, 1, 2]"),
    "a width's value": ("resnet50d", {"w": [0.65] * 6}, "w[0] is 0.65", "one of [0, 1, 2]"),
    "few widths": ("resnet50d", {"w": [0] * 5}, "w has 5 entries", "6 entries"),
    "kernels of none": ("resnet50d", {"ks": 3}, "'ks' = 3", "e, d, w"),
}  # fmt: skip
RIGHT = {
    "mobilenet_v3": {"ks": 3, "e": 3, "d": 4, "r": 224},
    "proxyless": {"ks": 3, "e": 3, "d": 2, "r": 224},
    "resnet50d": {"d": 0, "e": 0.2, "w": 0, "r": 224},
}


@pytest.mark.parametrize(("name", "change", "says", "expected"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_dictionary_says_where(
    spaces: dict[str, Space], name: str, change: dict[str, Any], says: str, expected: str
) -> None:
    with pytest.raises(ArchError) as raised:
        Arch.from_ofa({**RIGHT[name], **change}, spaces[name])
    assert says in raised.value.received
    assert expected in raised.value.expected


# --- net.config ---------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry["name"])
def test_published_networks_have_the_published_macs_and_parameters(entry: dict[str, Any]) -> None:
    config = config_of(entry)
    space = space_of(config)
    arch = arch_of(config, space, entry["resolution"])
    assert costs(space, arch) == (entry["macs"], entry["params"])
    assert Arch.from_ofa(arch.to_ofa(space), space) == arch


@pytest.mark.skipif(not BESIDE.is_dir(), reason="the published files are not beside the checkout")
def test_the_published_files_themselves() -> None:
    index = json.loads((BESIDE / "index.json").read_text(encoding="utf-8"))
    assert len(index) == len(PUBLISHED) == 25
    for name, entry in index.items():
        space, arch = read_arch(BESIDE / name, resolution=entry["image_size"])
        assert costs(space, arch) == (entry["macs"], entry["params"]), name


def test_family_and_width_follow_from_the_file() -> None:
    found = {
        (space.name, space.to_dict()["width"])
        for space in (space_of(config_of(entry)) for entry in PUBLISHED)
    }
    assert found == {("mobilenet_v3", 1.0), ("mobilenet_v3", 1.2), ("proxyless", 1.3)}


def test_a_resnet_as_the_published_code_writes_it() -> None:
    space = space_of(resnet_config())
    arch = arch_of(resnet_config(), space)
    assert arch == Arch.from_ofa(RESNET_OFA, published_space("resnet50d"))
    assert costs(space, arch) == RESNET_COSTS


def test_a_stem_without_the_residual_is_shallower() -> None:
    config = resnet_config()
    del config["input_stem"][1]
    assert arch_of(config, space_of(config)).depths == (0, 3, 2, 6, 3)


def test_classes_follow_from_the_classifier() -> None:
    config = config_of(PUBLISHED[0])
    config["classifier"] = linear(1664, 10)
    assert space_of(config).classes == 10


def test_new_class_names_mean_the_same() -> None:
    config = config_of(PUBLISHED[2])
    arch = arch_of(config, space_of(config))
    for row in config["blocks"]:
        row["conv"] = {**row.pop("mobile_inverted_conv"), "name": "MBConvLayer", "groups": None}
        row["name"] = "ResidualBlock"
    assert arch_of(config, space_of(config)) == arch


def test_without_middle_channels_the_ratio_says_them() -> None:
    config = resnet_config()
    for row in config["blocks"]:
        row["mid_channels"] = None
    assert costs(space_of(config), arch_of(config, space_of(config))) == RESNET_COSTS


def _set(path: str, value: Any) -> Alter:
    *above, last = path.split(".")

    def alter(config: dict[str, Any]) -> None:
        place: Any = config
        for key in above:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last] = value

    return alter


INNER = "blocks.3.mobile_inverted_conv"
DISAGREE: dict[str, tuple[Any, str, str]] = {
    "name": ("OFAMobileNetV3", "name is 'OFAMobileNetV3'", "MobileNetV3"),
    "mystery": (1, "'mystery'", "blocks"),
    "bn.eps": (1e-3, "bn is", "eps 1e-05"),
    "bn.ws_eps": (1e-5, "bn is", "ws_eps null"),
    "first_conv.out_channels": (32, "first_conv.out_channels is 32", "one of [16, 24]"),
    "first_conv.act_func": ("relu6", "first_conv.act_func is 'relu6'", "'h_swish'"),
    "first_conv.groups": (2, "first_conv.groups is 2", "1"),
    "first_conv.mystery": (2, "first_conv.mystery is 2", "no such key"),
    "blocks": ([], "blocks is empty", "one layer"),
    INNER: (None, f"{INNER} is None", "an object"),
    f"{INNER}.kernel_size": (9, "kernel size in stage", "one of [3, 5, 7]"),
    f"{INNER}.expand_ratio": (5, "expand ratio in stage", "one of [3, 4, 6]"),
    f"{INNER}.mid_channels": (8, f"{INNER}.mid_channels is 8", ""),
    f"{INNER}.stride": (1, f"{INNER}.stride is 1", "2"),
    f"{INNER}.in_channels": ("24", f"{INNER}.in_channels is '24'", "a number"),
    f"{INNER}.out_channels": (1e308, f"{INNER}.out_channels is 1e+308", "a number, at most"),
    "blocks.0.mobile_inverted_conv.in_channels": (10**400, "in_channels is 1000", "at most"),
    f"{INNER}.act_func": ("h_swish", f"{INNER}.act_func is 'h_swish'", "'relu'"),
    f"{INNER}.use_se": (False, f"{INNER}.use_se is False", "True"),
    f"{INNER}.name": ("ZeroLayer", f"{INNER}.name is 'ZeroLayer'", "'MBConvLayer'"),
    "blocks.2.shortcut": (None, "blocks.2.mobile_inverted_conv.shortcut is False", "True"),
    "blocks.3.shortcut": ({"name": "ConvLayer"}, "blocks.3.shortcut is 'ConvLayer'", "null or"),
    "final_expand_layer.use_bn": (False, "final_expand_layer.use_bn is False", "True"),
    "classifier.in_features": (1152, "classifier.in_features is 1152", "1280"),
    "classifier.bias": (False, "classifier.bias is False", "True"),
}


@pytest.mark.parametrize(("path", "case"), DISAGREE.items(), ids=DISAGREE.keys())
def test_what_disagrees_with_the_space_is_named(path: str, case: tuple[Any, str, str]) -> None:
    value, says, expected = case
    config = config_of(PUBLISHED[2])
    _set(path, value)(config)
    with pytest.raises(ArchError) as raised:
        arch_of(config, space_of(config))
    assert says in raised.value.received
    assert expected in raised.value.expected


@pytest.mark.parametrize("key", ["name", "blocks", "first_conv", "classifier"])
def test_a_configuration_that_lacks_a_part(key: str) -> None:
    config = config_of(PUBLISHED[2])
    del config[key]
    with pytest.raises(ArchError, match="has no"):
        space_of(config)


def test_a_part_of_the_head_that_is_missing() -> None:
    config = config_of(PUBLISHED[2])
    del config["feature_mix_layer"]
    with pytest.raises(ArchError, match=r"classifier\.name is 'LinearLayer'"):
        arch_of(config, space_of(config))


def test_a_stage_with_too_many_blocks() -> None:
    config = config_of(PUBLISHED[2])
    config["blocks"][3:3] = [config["blocks"][2]] * 3
    with pytest.raises(ArchError, match="depth of stage 1 is 5"):
        arch_of(config, space_of(config))


def test_a_resnet_of_other_channels() -> None:
    config = resnet_config()
    config["input_stem"][2]["out_channels"] = 56
    with pytest.raises(ArchError, match="out_channels is 56"):
        arch_of(config, space_of(config))


def test_a_resnet_of_three_stages() -> None:
    config = resnet_config()
    del config["blocks"][-3:]
    with pytest.raises(ArchError, match="3 stages"):
        arch_of(config, space_of(config))


def test_a_configuration_of_another_family_than_the_space(spaces: dict[str, Space]) -> None:
    with pytest.raises(ArchError, match="'MobileNetV3'"):
        arch_of(config_of(PUBLISHED[2]), spaces["proxyless"])


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], Path]:
    def write(value: Any) -> Path:
        path = tmp_path / "arch.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write


def test_every_form_is_read(written: Any, tiny_space: Any) -> None:
    space = tiny_space()
    arch = space.smallest(20)
    ours, theirs = arch.to_dict(), arch.to_ofa(space)
    element = {"target": 9.0, "latency": 8.5, "accuracy": 0.7, "seconds": 1.0, "arch": ours}
    for form in (ours, theirs, element, [element], {"arch": theirs}):
        assert read_arch(written(form), space) == (space, arch)
    for form in (ours, theirs):
        told = {"space": space.to_dict(), "arch": form}
        assert read_arch(written(told)) == (space, arch)
        assert read_arch(written(told), space, resolution=16) == (space, space.at(arch, 16))


def test_a_file_that_says_no_space(written: Any) -> None:
    with pytest.raises(ArchError, match="does not say of which space") as raised:
        read_arch(written({"ks": 3, "e": 3, "d": 2, "r": 224}))
    assert "--space" in raised.value.remedy


def test_a_file_that_says_another_space(written: Any, tiny_space: Any) -> None:
    space = tiny_space()
    told = {"space": space.to_dict(), "arch": space.smallest().to_dict()}
    with pytest.raises(ArchError, match=r"its space has width = 1\.0"):
        read_arch(written(told), tiny_space(width=2.0))


def test_classes_and_sampled_resolutions_do_not_bind_an_arch(written: Any, tiny_space: Any) -> None:
    narrow = replace(tiny_space(classes=4), resolutions=(20,))
    told = {"space": narrow.to_dict(), "arch": narrow.smallest().to_dict()}
    space = tiny_space()
    assert read_arch(written(told), space) == (space, space.smallest(20))


UNREADABLE: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "is not JSON"),
    "a number": ("3", "holds 3"),
    "a list": ([{}, {}], "holds a list of 2"),
    "something else": ({"a": 1, "b": 2}, "the keys ['a', 'b']"),
    "an arch of nothing": ({"arch": None}, "holds null"),
    "a space's name": ({"space": "mobilenet_v3", "arch": {"d": 2}}, "space is 'mobilenet_v3'"),
    "an unknown space": ({"space": {"name": "vit"}, "arch": {"d": 2}}, "unknown space 'vit'"),
    "keys missing": ({"depths": [1], "space": 1}, "an arch has the keys"),
}


@pytest.mark.parametrize(("value", "says"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_file_that_cannot_be_read_is_named(
    written: Any, tiny_space: Any, value: Any, says: str
) -> None:
    path = written(value)
    with pytest.raises(ArchError) as raised:
        read_arch(path, tiny_space())
    assert str(path) in raised.value.received
    assert says in raised.value.received


@pytest.mark.parametrize("what", ["gone.json", "."])
def test_a_file_that_is_none(tmp_path: Path, what: str) -> None:
    with pytest.raises(ArchError, match=r"does not exist|is no file"):
        read_arch(tmp_path / what)
