"""Recipes: read strictly, and every way one can be wrong has a message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from opa_trt.builder.legacy_network import legacy_macs
from opa_trt.builder.recipe import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARES,
    Recipe,
    read_recipe,
    recipe_from_dict,
    shipped_recipes,
)
from opa_trt.errors import RecipeError, UnknownNameError
from opa_trt.supernet import MobileNetV3Space
from opa_trt.supernet.legacy.networks import phases_of
from opa_trt.training.plan import phases

MINIMAL: dict[str, Any] = {"name": "mine", "space": {"name": "mobilenet_v3", "classes": 2}}
OF_LEGACY = [name for name in shipped_recipes() if read_recipe(name).is_legacy]
OF_SPACES = [name for name in shipped_recipes() if name not in OF_LEGACY]
LISTS = {"data.std", "measure.buckets"}


def recipe(**values: Any) -> Recipe:
    return recipe_from_dict({**MINIMAL, **values}, Path())


def nested(key: str, value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` for ``a.b``."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def refused(key: str, value: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(**nested(key, value))
    return str(caught.value)


# --- shipped recipes ----------------------------------------------------------------------------


def test_the_shipped_recipes_are_listed() -> None:
    assert {"cifar10", "digits"} <= set(shipped_recipes())


@pytest.mark.parametrize("name", OF_LEGACY)
def test_a_shipped_recipe_of_a_legacy_network_reads_and_makes_it(name: str) -> None:
    found = read_recipe(name)
    assert found.name == name
    named = phases_of(found.legacy.network, found.legacy.phases)
    assert 1 <= found.pioneer.stages < len(named)
    assert legacy_macs(found) > 0
    assert found.training.steps.full > 0


@pytest.mark.parametrize("name", OF_SPACES)
def test_a_shipped_recipe_reads_and_makes_its_space(name: str) -> None:
    found = read_recipe(name)
    assert found.name == name
    space = found.make_space(classes=10)
    assert isinstance(space, MobileNetV3Space)
    assert found.data.size in space.resolutions


@pytest.mark.parametrize("name", OF_SPACES)
def test_a_shipped_recipes_training_fits_its_space(name: str) -> None:
    found = read_recipe(name)
    assert next(phases(found.training, found.make_space())).name == "full"


@pytest.mark.parametrize("name", OF_SPACES)
def test_a_shipped_recipes_pioneer_lies_in_its_space(name: str) -> None:
    found = read_recipe(name)
    pioneer, space = found.pioneer, found.make_space()
    assert set(pioneer.resolutions) <= set(space.resolutions)
    space.arch(
        depths=pioneer.depth,
        kernel_sizes=pioneer.kernel_size,
        expand_ratios=pioneer.expand_ratio,
    )
    assert pioneer.stages < len(space.slots)


def test_an_unknown_shipped_name_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        read_recipe("digit")


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ncheckpoint = "w.safetensors"\n[space]\nname = "mobilenet_v3"\n')
    return path


def test_a_file_is_read(file: Path) -> None:
    assert read_recipe(str(file)).make_space() == MobileNetV3Space()


def test_a_checkpoint_lies_beside_its_recipe(file: Path) -> None:
    assert read_recipe(file).checkpoint_path() == file.parent / "w.safetensors"


def test_a_recipe_without_a_checkpoint_has_no_path() -> None:
    assert recipe().checkpoint_path() is None


def test_an_absolute_checkpoint_stays_where_it_is(tmp_path: Path) -> None:
    assert recipe(checkpoint=str(tmp_path / "w")).checkpoint_path() == tmp_path / "w"


@pytest.mark.parametrize("name", ["absent.toml", "recipes/absent"])
def test_a_missing_file_names_the_shipped_recipes(name: str) -> None:
    with pytest.raises(RecipeError, match=r"does not exist[\s\S]*digits"):
        read_recipe(name)


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"name = 'a'\nname = 'b'"])
def test_a_file_that_is_not_toml_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine\.toml is not TOML"):
        read_recipe(file)


def test_an_error_says_which_file(file: Path) -> None:
    file.write_text("name = 3\n[space]\n")
    with pytest.raises(RecipeError, match=r"mine\.toml: name is 3"):
        read_recipe(file)


# --- keys ---------------------------------------------------------------------------------------


def test_the_least_recipe_has_a_name_and_a_space() -> None:
    assert recipe().make_space() == MobileNetV3Space(classes=2)


@pytest.mark.parametrize(
    ("key", "message"),
    [("name", "the key 'name' is missing"), ("space", r"neither of \[space\] and \[legacy\]")],
)
def test_a_missing_key_is_named(key: str, message: str) -> None:
    values = {k: v for k, v in MINIMAL.items() if k != key}
    with pytest.raises(RecipeError, match=message):
        recipe_from_dict(values, Path())


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("trainings", "training"),
        ("data.sizes", "data.size"),
        ("training.batchsize", "training.batch_size"),
        ("training.steps.fully", "training.steps.full"),
    ],
)
def test_an_unknown_key_names_the_nearest(key: str, near: str) -> None:
    message = refused(key, 1)
    assert f"unknown key '{key}'" in message
    assert f"did you mean '{near}'?" in message


def test_an_unknown_key_like_no_other_names_them_all() -> None:
    message = refused("zzz", 1)
    assert "calibrate, checkpoint, compile" in message
    assert "did you mean" not in message


@pytest.mark.parametrize("key", ["folder", "folders"])
def test_the_folder_is_no_key_and_is_not_suggested(key: str) -> None:
    message = refused(key, "x")
    assert f"unknown key '{key}'" in message
    assert "did you mean" not in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("name", 3, "str"),
        ("seed", "one", "int"),
        ("seed", 1.5, "int"),
        ("seed", True, "int"),
        ("space", "mobilenet_v3", "Mapping"),
        ("data", [], "DataRecipe"),
        ("data.size", 32.0, "int"),
        ("data.mean", 0.5, "tuple[float, ...]"),
        ("data.mean", [0.5, "a", 0.5], "float"),
        ("data.clean", True, "float"),
        ("data.degradations", "noise", "tuple[str, ...]"),
        ("data.float_images", 1, "bool"),
        ("training.flip", "yes", "bool"),
        ("training.steps", 5, "Steps"),
        ("training.steps.depth", 5, "tuple[int, ...]"),
        ("training.steps.depth", [True], "int"),
        ("measure.buckets", [1.5], "int"),
    ],
)
def test_an_ill_typed_value_is_named_with_what_was_expected(
    key: str, value: Any, expected: str
) -> None:
    message = refused(key, value)
    assert f"{key} is " in message
    assert expected in message.split("Expected")[1]


def test_an_integer_will_do_for_a_float() -> None:
    rate = recipe(training={"learning_rate": 1}).training.learning_rate
    assert rate == 1.0
    assert isinstance(rate, float)


def test_lists_become_tuples() -> None:
    assert recipe(measure={"buckets": [1, 4]}).measure.buckets == (1, 4)


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", POSITIVE)
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_and_counts_are_positive(key: str, value: int) -> None:
    message = refused(key, [1, 1, value] if key in LISTS else value)
    assert f"{key} = " in message
    assert "above 0" in message


@pytest.mark.parametrize("key", NOT_NEGATIVE)
def test_what_may_be_0_is_not_negative(key: str) -> None:
    assert "0 or more" in refused(key, -1)
    recipe(**nested(key, 0))


@pytest.mark.parametrize("key", SHARES)
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_shares_lie_between_0_and_1(key: str, value: float) -> None:
    assert f"{key} = {value}" in refused(key, value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    assert "measure.seconds = " in refused("measure.seconds", value)


def test_there_is_a_bucket() -> None:
    assert "measure.buckets = ()" in refused("measure.buckets", [])


@pytest.mark.parametrize("key", ["data.mean", "data.std"])
def test_there_is_a_mean_and_a_std_for_every_channel(key: str) -> None:
    assert f"{key} has 1 entries" in refused(key, [0.5])


def test_there_are_at_least_as_many_candidates_as_tails() -> None:
    message = refused("tails", {"count": 5, "candidates": 4})
    assert "tails.candidates = 4" in message
    assert "at least tails.count, which is 5" in message
    assert recipe(tails={"count": 5, "candidates": 5}).tails.candidates == 5


def test_an_unknown_degradation_names_the_nearest() -> None:
    message = refused("data.degradations", ["noise", "blurr"])
    assert "unknown degradation 'blurr'" in message
    assert "did you mean 'blur'?" in message


@pytest.mark.parametrize(("key", "value"), [("data.source", "web"), ("compile.precision", "int4")])
def test_a_choice_that_does_not_exist_is_refused(key: str, value: str) -> None:
    message = refused(key, value)
    assert f"{key} = '{value}'" in message
    assert "one of [" in message


def test_an_impossible_plan_is_a_recipe_error() -> None:
    assert "training.batch_size = 0" in refused("training.batch_size", 0)


# --- spaces -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"name": "mobilenet_v4"}, "did you mean 'mobilenet_v3'"),
        ({"name": "mobilenet_v3", "clases": 3}, "did you mean 'classes'"),
        ({"name": "mobilenet_v3", "classes": "ten"}, "classes = 'ten'"),
        ({"name": "mobilenet_v3", "kernel_choices": [4]}, "odd kernel sizes"),
        ({"classes": 3}, "unknown space"),
    ],
)
def test_a_space_that_cannot_be_is_a_recipe_error(space: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=rf"\[space\] of recipe mine[\s\S]*{message}"):
        recipe(space=space).make_space()


def test_the_images_classes_are_accepted() -> None:
    assert recipe().make_space(classes=2).classes == 2


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"the images have 3 classes[\s\S]*classes = 3"):
        recipe().make_space(classes=3)


# --- digests ------------------------------------------------------------------------------------


def test_to_dict_is_json_and_reads_back() -> None:
    found = read_recipe("digits")
    plain = found.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert "folder" not in plain
    assert recipe_from_dict(plain, found.folder) == found


def test_a_digest_says_the_same_again() -> None:
    assert read_recipe("digits").digest() == read_recipe("digits").digest()
    assert len(recipe().digest()) == 64


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    forward = {"data": {"size": 16, "clean": 0.5}, "seed": 1}
    backward = {"seed": 1, "data": {"clean": 0.5, "size": 16}}
    assert recipe(**forward).digest() == recipe(**backward).digest()


def test_a_digest_does_not_depend_on_where_the_recipe_lies() -> None:
    here, there = (recipe_from_dict(MINIMAL, Path(folder)) for folder in ("a", "b"))
    assert here.digest() == there.digest()
    assert here == there


def test_a_default_that_is_written_down_changes_no_digest() -> None:
    written = recipe(pioneer={"expand_ratio": 4}, training={"shift": 0})
    assert written.digest() == recipe().digest()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "yours"),
        ("seed", 1),
        ("checkpoint", "w"),
        ("space", {"name": "mobilenet_v3", "classes": 3}),
        ("data.mean", [0.485, 0.456, 0.407]),
        ("training.steps.width", [2500, 5001]),
        ("training.checkpoint_every", 7),
        ("fit.group_size", 101),
    ],
)
def test_a_digest_depends_on_everything_that_it_says(key: str, value: Any) -> None:
    assert recipe(**nested(key, value)).digest() != recipe().digest()
