"""A recipe: the TOML that describes a training and a build, read strictly into frozen values."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from operator import attrgetter
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from opa_trt.builder.recipe_tables import (
    BaselinesRecipe,
    CalibrateRecipe,
    CompileRecipe,
    DataRecipe,
    FitRecipe,
    LegacyRecipe,
    MeasureRecipe,
    PioneerRecipe,
    TailsRecipe,
)
from opa_trt.errors import (
    CheckpointError,
    ConfigError,
    OpaError,
    RecipeError,
    UnknownNameError,
    nearest,
)
from opa_trt.supernet import Space, space_from_dict
from opa_trt.training.degrade import FAMILIES
from opa_trt.training.leaf_plan import LeafPlan
from opa_trt.training.plan import TrainingPlan

RECIPES = "opa_trt.recipes"
SUFFIX = ".safetensors"
CHOICES: dict[str, tuple[object, ...]] = {
    "data.source": ("digits", "folder"),
    "compile.precision": ("fp32", "fp16"),
    "baselines.cascade": (0, 2, 3),
}
POSITIVE = (
    "data.size",
    "data.std",
    "legacy.ratio",
    "legacy.divisor",
    "legacy.classes",
    "pioneer.head_width",
    "pioneer.images",
    "pioneer.epochs",
    "pioneer.learning_rate",
    "tails.count",
    "tails.images",
    "calibrate.images",
    "calibrate.batch",
    "compile.max_batch",
    "measure.buckets",
    "measure.seconds",
    "fit.images",
    "fit.groups",
    "fit.group_size",
)
NOT_NEGATIVE = ("seed", "pioneer.stages", "compile.threads")
SHARES = ("data.holdout", "data.clean")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training or a build computes."""

    name: str
    space: Mapping[str, Any] = field(default_factory=dict)
    legacy: LegacyRecipe = field(default_factory=LegacyRecipe)
    seed: int = 0
    checkpoint: str = ""
    data: DataRecipe = field(default_factory=DataRecipe)
    training: TrainingPlan = field(default_factory=TrainingPlan)
    leaf: LeafPlan = field(default_factory=LeafPlan)
    pioneer: PioneerRecipe = field(default_factory=PioneerRecipe)
    tails: TailsRecipe = field(default_factory=TailsRecipe)
    calibrate: CalibrateRecipe = field(default_factory=CalibrateRecipe)
    compile: CompileRecipe = field(default_factory=CompileRecipe)
    measure: MeasureRecipe = field(default_factory=MeasureRecipe)
    fit: FitRecipe = field(default_factory=FitRecipe)
    baselines: BaselinesRecipe = field(default_factory=BaselinesRecipe)
    folder: Path = field(default=Path(), compare=False)

    @property
    def is_legacy(self) -> bool:
        """Whether it describes a legacy network, and not a space."""
        return bool(self.legacy.network)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the folder it was read from is left out."""
        plain = asdict(self)
        del plain["folder"]
        return dict(json.loads(json.dumps(plain)))

    def digest(self) -> str:
        """sha256 of everything that it says."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def make_space(self, classes: int | None = None) -> Space:
        """The space that ``[space]`` describes.

        Args:
            classes: what the images have; a recipe that says another number is refused.

        Raises:
            RecipeError: unknown parameters, impossible values, another number of classes, or a
                recipe of a legacy network.
        """
        if self.is_legacy:
            msg = f"recipe {self.name} describes a legacy network, {self.legacy.network}."
            raise RecipeError(msg, expected="a [space].")
        try:
            space = space_from_dict(self.space)
        except ConfigError as exc:
            msg = f"[space] of recipe {self.name}: {exc}"
            raise RecipeError(msg) from exc
        if classes is not None and space.classes != classes:
            msg = (
                f"the images have {classes} classes, [space] of recipe {self.name} says "
                f"{space.classes}."
            )
            raise RecipeError(
                msg,
                expected=f"classes = {classes}.",
            )
        return space

    def checkpoint_path(self) -> Path | None:
        """The checkpoint's file (relative paths start at the recipe), or None if not named."""
        return self.folder / self.checkpoint if self.checkpoint else None

    def named_checkpoint(self) -> Path:
        """``checkpoint_path`` of a recipe that must name one.

        Raises:
            CheckpointError: it does not.
        """
        path = self.checkpoint_path()
        if path is None:
            msg = f"recipe {self.name} names no checkpoint."
            raise CheckpointError(
                msg,
                expected="weights from `opa-trt train`.",
                remedy="add --checkpoint FILE, or checkpoint = … to the recipe.",
            )
        return path

    def with_checkpoint(self, path: Path) -> Recipe:
        """The same recipe with the weights in ``path``, relative to where we are."""
        moved = replace(self, checkpoint=path.name, folder=path.parent)
        if not self.legacy.weights.endswith(SUFFIX):
            return moved
        return moved.with_legacy_weights(self.folder / self.legacy.weights)

    def with_legacy_weights(self, path: Path) -> Recipe:
        """The same recipe with the legacy network's weights in ``path``, relative to where we
        are.

        Raises:
            RecipeError: it is of no legacy network.
        """
        if not self.is_legacy:
            msg = f"recipe {self.name} has no legacy network."
            raise RecipeError(msg, expected="a recipe with [legacy].")
        weights = os.path.relpath(path, self.folder)
        return replace(self, legacy=replace(self.legacy, weights=weights))


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    found = resources.files(RECIPES).iterdir()
    return sorted(item.name[:-5] for item in found if item.name.endswith(".toml"))


def read_recipe(name: str | Path) -> Recipe:
    """The recipe in the file ``name``, or the shipped one of that name.

    Raises:
        UnknownNameError: neither a file nor a shipped recipe.
        RecipeError: not TOML, an unknown, missing or ill-typed key, or an impossible value.
    """
    path = Path(name)
    if not path.is_file():
        shipped = shipped_recipes()
        if str(name) not in shipped:
            if path.suffix == ".toml" or len(path.parts) > 1:
                msg = f"{name} does not exist."
                raise RecipeError(
                    msg,
                    expected=f"a TOML file, or one of {', '.join(shipped)}.",
                )
            msg = "recipe"
            raise UnknownNameError(msg, str(name), shipped)
        path = Path(str(resources.files(RECIPES))) / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        msg = f"{path} is not TOML: {exc}."
        raise RecipeError(msg) from exc
    return recipe_from_dict(values, path.parent, str(path))


def recipe_from_dict(values: Mapping[str, Any], folder: Path, origin: str = "recipe") -> Recipe:
    """The recipe in ``values``; ``folder`` is where relative paths start.

    Raises:
        RecipeError: as ``read_recipe`` says.
    """
    if "folder" in values:
        msg = f"{origin}: unknown key 'folder'."
        raise RecipeError(msg)
    try:
        recipe: Recipe = _build(Recipe, {**values, "folder": folder}, origin, "")
    except RecipeError:
        raise
    except OpaError as exc:
        msg = f"{origin}: {exc}"
        raise RecipeError(msg) from exc
    _check(recipe, origin)
    return recipe


def _check(recipe: Recipe, origin: str) -> None:
    """What the types alone do not say."""
    for family in recipe.data.degradations:
        if family not in FAMILIES:
            unknown = UnknownNameError("degradation", family, FAMILIES)
            msg = f"{origin}: {unknown}"
            raise RecipeError(msg)
    for key, allowed in CHOICES.items():
        value = attrgetter(key)(recipe)
        if value not in allowed:
            msg = f"{origin}: {key} = {value!r}."
            raise RecipeError(msg, expected=f"one of {list(allowed)}.")
    if not recipe.compile.backends:
        msg = f"{origin}: compile.backends is empty."
        raise RecipeError(msg, expected="'auto', or names of backends.")
    if recipe.is_legacy == bool(recipe.space):
        msg = f"{origin}: {'both' if recipe.space else 'neither of'} [space] and [legacy]."
        raise RecipeError(msg, expected="one of them: [space], or [legacy] with its network.")
    for key in ("data.mean", "data.std"):
        values = attrgetter(key)(recipe)
        if len(values) != 3:
            msg = f"{origin}: {key} has {len(values)} entries."
            raise RecipeError(msg, expected="3: red, green, blue.")
    sides = recipe.pioneer.resolutions
    if len(set(sides)) < len(sides):
        msg = f"{origin}: pioneer.resolutions = {list(sides)}."
        raise RecipeError(msg, expected="every resolution once.")
    _check_numbers(recipe, origin)


def _check_numbers(recipe: Recipe, origin: str) -> None:
    for keys, fits, expected in (
        (POSITIVE, lambda number: 0 < number < math.inf, "above 0."),
        (NOT_NEGATIVE, lambda number: 0 <= number < math.inf, "0 or more."),
        (SHARES, lambda number: 0 <= number <= 1, "0 to 1."),
    ):
        for key in keys:
            found = attrgetter(key)(recipe)
            numbers = found if isinstance(found, tuple) else (found,)
            if not numbers or not all(map(fits, numbers)):
                msg = f"{origin}: {key} = {found}."
                raise RecipeError(msg, expected=expected)
    if recipe.tails.candidates < recipe.tails.count:
        msg = f"{origin}: tails.candidates = {recipe.tails.candidates}."
        raise RecipeError(
            msg,
            expected=f"at least tails.count, which is {recipe.tails.count}.",
        )
    _check_baselines(recipe, origin)


def _check_baselines(recipe: Recipe, origin: str) -> None:
    wanted = recipe.baselines
    most = recipe.tails.candidates
    for key, found, fits, expected in (
        ("whole", wanted.whole, 2 <= wanted.whole <= most, f"2 to tails.candidates, {most}."),
        (
            "cascade", wanted.cascade, wanted.cascade <= wanted.whole,
            f"at most baselines.whole, which is {wanted.whole}: they share its networks.",
        ),
        ("branchynet", wanted.branchynet, wanted.branchynet >= 2, "2 or more exits."),
    ):  # fmt: skip
        if found and not fits:
            msg = f"{origin}: baselines.{key} = {found}."
            raise RecipeError(msg, expected=f"0, or {expected}")
    if recipe.tails.complete and not wanted.whole:
        msg = f"{origin}: tails.complete, and baselines.whole = 0."
        raise RecipeError(msg, expected="at least 2 complete sub-networks.")


def _build(kind: type[Any], values: Mapping[str, Any], origin: str, prefix: str) -> Any:
    """A frozen dataclass from a table; tables within become dataclasses within."""
    known = {item.name: item for item in fields(kind)}
    hints = get_type_hints(kind)
    offered = sorted(known.keys() - {"folder"})
    for key in values:
        if key not in known:
            near = nearest(key, offered)
            msg = f"{origin}: unknown key '{prefix}{key}'."
            raise RecipeError(
                msg,
                expected=f"one of {', '.join(offered)}.",
                remedy=f"did you mean '{prefix}{near}'?" if near else "",
            )
    for item in known.values():
        if item.default is MISSING and item.default_factory is MISSING and item.name not in values:
            msg = f"{origin}: the key '{prefix}{item.name}' is missing."
            raise RecipeError(msg)
    return kind(
        **{
            key: _convert(value, hints[key], origin, f"{prefix}{key}")
            for key, value in values.items()
        }
    )


def _convert(value: Any, wanted: Any, origin: str, key: str) -> Any:
    """``value`` as the type hint ``wanted`` has it, or a RecipeError that names the key."""
    shape = get_origin(wanted)
    if is_dataclass(wanted) and isinstance(wanted, type) and isinstance(value, Mapping):
        return _build(wanted, value, origin, f"{key}.")
    if shape is tuple and isinstance(value, list):
        inner = get_args(wanted)[0]
        return tuple(_convert(item, inner, origin, key) for item in value)
    if shape is not None and issubclass(_concrete(shape), Mapping) and isinstance(value, Mapping):
        return dict(value)
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    truth = wanted is int and isinstance(value, bool)
    if isinstance(wanted, type) and isinstance(value, wanted) and not truth:
        return value
    name = getattr(wanted, "__name__", str(wanted)) if shape is None else str(wanted)
    msg = f"{origin}: {key} is {value!r} ({type(value).__name__})."
    raise RecipeError(msg, expected=f"{name}.")


def _concrete(shape: Any) -> type:
    return object if shape in (Union, types.UnionType) else shape
