"""OFA's published ``net.config`` files: one network's layers, from which space and arch follow.

A file names neither resolution nor width. The width is the one whose stem the file has. Every
layer is compared with what the space would run, so a file of another space is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opa_trt.errors import ArchError
from opa_trt.supernet.arch import Arch
from opa_trt.supernet.layers import make_divisible
from opa_trt.supernet.operators import Operator
from opa_trt.supernet.registry import published_spaces
from opa_trt.supernet.space import Space

STEM = ("first_conv", "input_stem")
HEAD = ("final_expand_layer", "feature_mix_layer", "classifier")
KEYS = ("name", "bn", *STEM, "blocks", *HEAD)
WRAPPED = ("conv", "mobile_inverted_conv")  # a block's layer, beside its shortcut; new and old
OLD_NAMES = {"MBInvertedConvLayer": "MBConvLayer"}
IGNORED = ("dropout_rate", "expand_ratio")  # no meaning once trained; told by mid_channels
ORDER = ("weight_bn_act",)
LARGEST = 10**9  # no number in a file is larger; products of two stay finite
# What a layer may say beside what is compared, and the only values that we build.
FIXED: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "ConvLayer": {
        "dilation": (1,),
        "groups": (1,),
        "bias": (False,),
        "has_shuffle": (False,),
        "use_se": (False,),
        "ops_order": ORDER,
    },
    "MBConvLayer": {"groups": (None,)},
    "ResNetBottleneckBlock": {"groups": (1,)},
    "LinearLayer": {"bias": (True,), "use_bn": (False,), "act_func": (None,), "ops_order": ORDER},
}


@dataclass(frozen=True)
class Layer:
    """A layer of a file: where it stands (``blocks.3.conv``), and what the file says of it."""

    path: str
    says: Mapping[str, Any]

    def number(self, key: str) -> Any:
        """The number under ``key``, whole where it can be; ArchError where it is none of use."""
        value: Any = self.says.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) <= LARGEST:
            message = f"{self.path}.{key} is {value!r}."
            raise ArchError(message, expected=f"a number, at most {LARGEST:,}.")
        return int(value) if value == int(value) else value

    @property
    def begins(self) -> bool:
        """Whether a stage begins here: with a stride, or with other channels than before."""
        same = self.number("in_channels") == self.number("out_channels")
        return not same or self.number("stride") != 1


def is_net_config(values: Mapping[str, Any]) -> bool:
    """Whether ``values`` look like a net.config."""
    return "blocks" in values


def space_of(config: Mapping[str, Any]) -> Space:
    """The published space that ``config`` is of: family, width and number of classes.

    Raises:
        ArchError: a family that was not published, or a stem that none of its widths has.
    """
    _check_top(config)
    classes = int(_layers(config, HEAD[-1:])[0].number("out_features"))
    family = [s for s in published_spaces(max(classes, 1)) if s.net_name == config["name"]]
    if not family:
        known = sorted({space.net_name for space in published_spaces(1)})
        message = f"name is {config['name']!r}."
        raise ArchError(message, expected=f"one of {known}.")
    if len(family) == 1:
        return family[0]
    stem = _layers(config, STEM)[0]
    widths = {_operators(s, s.smallest())[0].net_layer["out_channels"]: s for s in family}
    found = stem.number("out_channels")
    if found not in widths:
        message = f"{stem.path}.out_channels is {found}."
        raise ArchError(message, expected=f"one of {sorted(widths)} in {config['name']}.")
    return widths[found]


def arch_of(config: Mapping[str, Any], space: Space, resolution: int | None = None) -> Arch:
    """The arch of ``space`` that ``config`` describes; the largest resolution by default.

    Raises:
        ArchError: names the layer that disagrees with the space, what it says and should say.
    """
    _check_top(config)
    if config["name"] != space.net_name:
        message = f"name is {config['name']!r}."
        raise ArchError(message, expected=f"{space.net_name!r}, of space {space.name}.")
    _check_norm(config, space)
    stem, blocks, head = (_layers(config, keys) for keys in (STEM, ("blocks",), HEAD))
    side = space.resolutions[-1] if resolution is None else resolution
    arch = space.arch_from_layers(stem, blocks, side)
    space.validate(arch)
    _compare_all([*stem, *blocks, *head], space, arch)
    return arch


def stages_of(blocks: Sequence[Layer]) -> list[list[Layer]]:
    """Blocks by stage; each stage begins with a stride or with other channels."""
    stages: list[list[Layer]] = []
    for block in blocks:
        if block.begins or not stages:
            stages.append([])
        stages[-1].append(block)
    return stages


# --- reading --------------------------------------------------------------------------------------


def _check_top(config: Mapping[str, Any]) -> None:
    for key in ("name", "blocks", HEAD[-1]):
        if key not in config:
            message = f"a net.config has no {key!r}, only {sorted(config)}."
            raise ArchError(message, expected=f"some of {list(KEYS)}.")
    if unknown := sorted(set(config) - set(KEYS)):
        message = f"a net.config has the key {unknown[0]!r}."
        raise ArchError(message, expected=f"some of {list(KEYS)}.")
    if not any(key in config for key in STEM):
        message = f"a net.config has no stem, only {sorted(config)}."
        raise ArchError(message, expected=f"one of {list(STEM)}.")


def _check_norm(config: Mapping[str, Any], space: Space) -> None:
    norm = config.get("bn", {})
    wanted = space.to_dict()["norm_eps"]
    fits = isinstance(norm, Mapping) and norm.get("eps", wanted) == wanted
    if not fits or norm.get("ws_eps") is not None:  # weights would be standardised
        message = f"bn is {norm!r}."
        raise ArchError(message, expected=f"eps {wanted:g} and ws_eps null, as {space.name} has.")


def _layers(config: Mapping[str, Any], keys: Sequence[str]) -> list[Layer]:
    found = []
    for key in keys:
        value = config.get(key)
        if isinstance(value, list):
            found += [_layer(f"{key}.{index}", item) for index, item in enumerate(value)]
        elif key in config:
            found.append(_layer(key, value))
    if not found:
        message = f"{keys[0]} is empty."
        raise ArchError(message, expected="one layer or more.")
    return found


def _layer(path: str, value: Any) -> Layer:
    """A layer; a block's own layer together with whether it has a shortcut."""
    if not isinstance(value, Mapping):
        message = f"{path} is {value!r}."
        raise ArchError(message, expected="an object that describes a layer.")
    for key in WRAPPED:
        if key in value:
            inner = _layer(f"{path}.{key}", value[key])
            return Layer(inner.path, {**inner.says, "shortcut": _shortcut(path, value)})
    name = OLD_NAMES.get(str(value.get("name")), value.get("name"))
    layer = Layer(path, {**value, "name": name})
    return Layer(path, {**layer.says, **_middle(layer)})


def _shortcut(path: str, block: Mapping[str, Any]) -> bool:
    shortcut = block.get("shortcut")
    if isinstance(shortcut, Mapping) and shortcut.get("name") != "IdentityLayer":
        message = f"{path}.shortcut is {shortcut.get('name')!r}."
        raise ArchError(message, expected="null or 'IdentityLayer'.")
    return shortcut is not None


def _middle(layer: Layer) -> dict[str, int]:
    """The middle channels where the file leaves them to the ratio, as OFA's layers do."""
    if "expand_ratio" not in layer.says or layer.says.get("mid_channels") is not None:
        return {}
    ratio = layer.number("expand_ratio")
    if layer.says["name"] == "ResNetBottleneckBlock":
        return {"mid_channels": make_divisible(round(layer.number("out_channels") * ratio))}
    return {"mid_channels": round(layer.number("in_channels") * ratio)}


# --- comparing ------------------------------------------------------------------------------------


def _operators(space: Space, arch: Arch) -> list[Operator]:
    """Those that a file has a layer for."""
    parts = space.operators(arch).values()
    return [operator for part in parts for operator in part if operator.net_layer]


def _compare_all(layers: Sequence[Layer], space: Space, arch: Arch) -> None:
    operators = _operators(space, arch)
    for layer, operator in zip(layers, operators, strict=False):
        _compare(layer, operator.net_layer)
    if len(layers) != len(operators):
        message = f"a net.config has {len(layers)} layers."
        raise ArchError(message, expected=f"{len(operators)}, as {space.name} has.")


def _compare(layer: Layer, wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if key not in layer.says or layer.says[key] != value:
            found = repr(layer.says[key]) if key in layer.says else "missing"
            message = f"{layer.path}.{key} is {found}."
            raise ArchError(message, expected=f"{value!r}.")
    for key in (key for key in layer.says if key not in wanted and key not in IGNORED):
        allowed = FIXED[wanted["name"]].get(key, ())
        if layer.says[key] not in allowed:
            message = f"{layer.path}.{key} is {layer.says[key]!r}."
            raise ArchError(message, expected=f"{allowed[0]!r}." if allowed else "no such key.")
