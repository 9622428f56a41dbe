"""Accuracy predictors: what they compute, what they fit, and files that are none."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import save as to_safetensors
from safetensors.torch import save as torch_to_safetensors
from torch import nn

from opa_trt.errors import CheckpointError, ConfigError
from opa_trt.search.accuracy_predictor import (
    FORMAT,
    PUBLISHED_RESOLUTIONS,
    AccuracyPredictor,
    read_accuracy,
)
from opa_trt.supernet import published_space
from opa_trt.supernet.space import Space

Make = Callable[..., AccuracyPredictor]
Arrays = Mapping[str, npt.NDArray[Any]]


def arrays_of(predictor: AccuracyPredictor) -> dict[str, npt.NDArray[Any]]:
    """Its layers under the published names: every other module of a network is a ReLU."""
    found = {}
    for place, (weight, bias) in enumerate(predictor.layers):
        found |= {f"{2 * place}.weight": weight, f"{2 * place}.bias": bias}
    return found


def write_npz(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def torch_network(arrays: Arrays) -> nn.Sequential:
    """The same network in torch, from arrays under the published names."""
    modules: list[nn.Module] = []
    for key in sorted((k for k in arrays if k.endswith("weight")), key=lambda k: int(k[:-7])):
        outputs, inputs = arrays[key].shape
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    network = nn.Sequential(*modules[:-1]).double()
    network.load_state_dict({k: torch.from_numpy(v).double() for k, v in arrays.items()})
    return network.eval()


# --- what it computes -----------------------------------------------------------------------------


@torch.no_grad()
def test_it_computes_what_the_network_does_in_torch(tiny: Space, predictor: Make) -> None:
    made = predictor(tiny, seed=1)
    rows = tiny.genome.sample(64, np.random.default_rng(0))
    codes = torch.from_numpy(tiny.genome.one_hot(rows)).double()
    expected = torch_network(arrays_of(made))(codes)[:, 0].numpy()
    found = made.bind(tiny.genome)(rows)
    assert found.dtype == np.float32
    assert found.shape == (64,)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_genes_that_do_not_count_are_not_read(tiny: Space, predictor: Make) -> None:
    genome = tiny.genome
    rows = np.random.default_rng(0).integers(0, genome.counts, (50, len(genome)), dtype=np.int16)
    accuracy = predictor(tiny).bind(genome)
    assert accuracy(rows).tolist() == accuracy(genome.canonical(rows)).tolist()


def test_of_nobody_it_predicts_nothing(mobile: Space, predictor: Make) -> None:
    none = np.empty((0, len(mobile.genome)), dtype=np.int16)
    assert predictor(mobile).bind(mobile.genome)(none).shape == (0,)


def test_one_layer_is_a_predictor_too(mobile: Space, predictor: Make) -> None:
    inputs = predictor(mobile).inputs
    weight, bias = np.ones((1, inputs), np.float32), np.zeros(1, np.float32)
    accuracy = predictor(mobile, layers=[(weight, bias)]).bind(mobile.genome)
    largest = mobile.genome.row(mobile.largest())[None]
    assert accuracy(largest).tolist() == [4 + 4 + 1]  # kernels, ratios, a resolution


@pytest.mark.parametrize("sides", [(32,), (16,), (16, 32)])
def test_a_space_with_some_of_its_resolutions_is_predicted_alike(
    mobile: Space, predictor: Make, sides: tuple[int, ...]
) -> None:
    made, fewer = predictor(mobile), replace(mobile, resolutions=sides)
    rows = fewer.genome.sample(20, np.random.default_rng(0))
    same = mobile.genome.rows([fewer.genome.arch(row) for row in rows])
    np.testing.assert_allclose(
        made.bind(fewer.genome)(rows), made.bind(mobile.genome)(same), atol=1e-6
    )


# --- what it fits ---------------------------------------------------------------------------------


def test_codes_of_another_length_are_refused(mobile: Space, predictor: Make) -> None:
    deeper = replace(mobile, depth_choices=(1, 2, 3))
    with pytest.raises(ConfigError, match=r"reads codes of 16 \+ 2 inputs.* has 24") as caught:
        predictor(mobile).bind(deeper.genome)
    assert "opa-trt search fit-accuracy" in caught.value.remedy


def test_resolutions_that_it_does_not_know_are_named(mobile: Space, predictor: Make) -> None:
    larger = replace(mobile, resolutions=(16, 48))
    with pytest.raises(ConfigError, match=r"knows nothing of resolutions \[48\]"):
        predictor(mobile).bind(larger.genome)


def test_another_space_of_the_same_size_is_refused(mobile: Space, predictor: Make) -> None:
    other = replace(mobile, expand_choices=(2, 4))
    with pytest.raises(ConfigError, match="fitted in another space"):
        predictor(mobile).bind(other.genome)


def test_without_a_space_only_the_size_is_known(mobile: Space, predictor: Make) -> None:
    other = replace(mobile, expand_choices=(2, 4))
    rows = other.genome.sample(3, np.random.default_rng(0))
    assert predictor(mobile, space=None).bind(other.genome)(rows).shape == (3,)


# --- our files ------------------------------------------------------------------------------------


def test_it_is_read_back_as_it_was_saved(tiny: Space, predictor: Make, tmp_path: Path) -> None:
    made = predictor(tiny, facts={"rmse": 0.01, "pairs": 30})
    made.save(tmp_path / "a.safetensors")
    found = read_accuracy(str(tmp_path / "a.safetensors"))
    assert found.name == "a.safetensors"
    assert (found.resolutions, found.space, found.facts) == (
        made.resolutions,
        made.space,
        made.facts,
    )
    rows = tiny.genome.sample(10, np.random.default_rng(0))
    assert found.bind(tiny.genome)(rows).tolist() == made.bind(tiny.genome)(rows).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "has format 'other'"),
        ({"version": "2"}, "version '2'"),
        ({"version": "³"}, "version '³'"),
        ({"version": ""}, "version ''"),
        ({"space": "{"}, "does not describe itself"),
        ({"space": "[1]"}, "does not describe itself"),
        ({"space": '{"name": "mobilenet_v9"}'}, "does not describe itself"),
        ({"resolutions": "16"}, "does not describe itself"),
        ({"resolutions": "[[16]]"}, "does not describe itself"),
        ({"resolutions": "[Infinity]"}, "does not describe itself"),
        ({"facts": "3"}, "does not describe itself"),
        ({"facts": "[" * 100_000}, "does not describe itself"),
        ({"facts": None}, "does not describe itself"),
    ],
)
def test_a_file_of_ours_that_misstates_itself_is_refused(
    mobile: Space, predictor: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    made = predictor(mobile)
    metadata = {
        "format": FORMAT,
        "version": "1",
        "space": json.dumps(mobile.to_dict()),
        "resolutions": "[16, 32]",
        "facts": "{}",
        **changes,
    }
    stated = {key: value for key, value in metadata.items() if value is not None}
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_safetensors(arrays_of(made), metadata=stated))
    with pytest.raises(CheckpointError, match=message):
        read_accuracy(path)


def test_a_file_without_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(to_safetensors({"0.weight": np.zeros((1, 2), np.float32)}))
    with pytest.raises(CheckpointError, match="format None"):
        read_accuracy(path)


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_a_truncated_file_of_ours_is_refused(
    mobile: Space, predictor: Make, tmp_path: Path, cut: int
) -> None:
    path = tmp_path / "a.safetensors"
    predictor(mobile).save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        read_accuracy(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_numbers_that_numpy_lacks_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"0.weight": torch.zeros(1, 3).to(dtype), "0.bias": torch.zeros(1)}
    path = tmp_path / "a.safetensors"
    path.write_bytes(torch_to_safetensors(tensors, {"format": FORMAT, "version": "1"}))
    with pytest.raises(CheckpointError, match="numbers that numpy lacks"):
        read_accuracy(path)


# --- published files ------------------------------------------------------------------------------


def test_an_npz_is_read_as_the_published_one_is(
    mobile: Space, predictor: Make, tmp_path: Path
) -> None:
    made = predictor(mobile)
    found = read_accuracy(write_npz(tmp_path / "a.npz", arrays_of(made)))
    assert (found.name, found.space) == ("a.npz", None)
    assert found.resolutions == PUBLISHED_RESOLUTIONS == (112, 128, 144, 160, 176, 192, 208, 224)
    assert [w.shape for w, _ in found.layers] == [w.shape for w, _ in made.layers]


def test_layers_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for number, (outputs, inputs) in {2: (4, 3), 10: (5, 4), 12: (1, 5)}.items():
        arrays |= {f"{number}.weight": np.ones((outputs, inputs)), f"{number}.bias": np.zeros(1)}
        arrays[f"{number}.bias"] = np.zeros(outputs)
    found = read_accuracy(write_npz(tmp_path / "a.npz", dict(sorted(arrays.items()))))
    assert [weight.shape for weight, _ in found.layers] == [(4, 3), (5, 4), (1, 5)]
    assert found.layers[0][0].dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"0.weight": None}, r"a\.npz holds"),
        ({"0.bias": None}, r"a\.npz holds"),
        ({"head": np.zeros(1)}, r"a\.npz holds"),
        ({"0.weight": np.array([["a", "b"]])}, r"a\.npz holds"),
        ({"0.weight": np.zeros((3, 2), complex)}, r"a\.npz holds"),
        ({"0.weight": np.full((3, 2), np.nan)}, r"shapes \(3, 2\) and \(3,\)"),
        ({"0.bias": np.array([0, 0, np.inf])}, r"shapes \(3, 2\) and \(3,\)"),
        ({"0.weight": np.full((3, 2), 1e300)}, r"shapes \(3, 2\) and \(3,\)"),
        ({"0.weight": np.zeros(3)}, r"shapes \(3,\) and \(3,\)"),
        ({"0.bias": np.zeros(2)}, r"shapes \(3, 2\) and \(2,\)"),
        ({"0.weight": np.zeros((4, 2)), "0.bias": np.zeros(4)}, r"shapes \(1, 3\) and \(1,\)"),
        ({"2.weight": np.zeros((2, 3)), "2.bias": np.zeros(2)}, "has 2 outputs"),
    ],
)
def test_layers_that_are_no_predictor_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    arrays: dict[str, Any] = {"0.weight": np.zeros((3, 2)), "0.bias": np.zeros(3)}
    arrays |= {"2.weight": np.zeros((1, 3)), "2.bias": np.zeros(1)}
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        read_accuracy(write_npz(tmp_path / "a.npz", arrays))


def test_a_file_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="weight and bias of layers"):
        read_accuracy(write_npz(tmp_path / "a.npz", {}))


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def object_arrays(bomb: Bomb) -> bytes:
    content = io.BytesIO()
    np.savez(content, **{"0.weight": np.array([[bomb]], dtype=object), "0.bias": np.zeros(1)})
    return content.getvalue()


@pytest.mark.parametrize("content", [object_arrays, pickle.dumps])
def test_pickles_are_refused_and_not_run(tmp_path: Path, content: Callable[[Bomb], bytes]) -> None:
    path, touched = tmp_path / "a.npz", tmp_path / "touched"
    path.write_bytes(content(Bomb(touched)))
    with pytest.raises(CheckpointError, match=r"not a readable \.npz file"):
        read_accuracy(path)
    assert not touched.exists()


def damaged() -> dict[str, bytes]:
    """Contents that are no .npz file, each in its way."""
    whole, single, members, squeezed = (io.BytesIO() for _ in range(4))
    np.savez(whole, **{"0.weight": np.zeros((1, 9)), "0.bias": np.zeros(1)})
    np.save(single, np.zeros(3))
    with zipfile.ZipFile(members, "w") as file:
        file.writestr("0.weight.npy", "no array")
        file.writestr("0.bias.npy", "neither")
    noise = np.random.default_rng(0).random((1, 100))
    np.savez_compressed(squeezed, **{"0.weight": noise, "0.bias": np.zeros(1)})
    flipped = bytearray(squeezed.getvalue())
    flipped[100] ^= 255
    return {
        "empty": b"",
        "text": b"accuracy\n",
        "truncated": whole.getvalue()[:200],
        "one array": single.getvalue(),
        "no arrays": members.getvalue(),
        "flipped bits": bytes(flipped),
    }


@pytest.mark.parametrize("content", damaged().values(), ids=damaged())
def test_a_damaged_npz_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.npz"):
        read_accuracy(tmp_path / "a.npz")


def test_a_file_that_is_not_there_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.npz does not exist") as caught:
        read_accuracy(tmp_path / "none.npz")
    assert "fit-accuracy" in caught.value.remedy


# --- the published predictor ----------------------------------------------------------------------


@torch.no_grad()
def test_the_published_predictor_is_read_for_some_of_its_resolutions(
    published: Callable[[str], Path],
) -> None:
    path = published("mbv3_accuracy_predictor.npz")
    found = read_accuracy(path)
    assert found.inputs == 128
    sides = (160, 176, 192, 208, 224)
    genome = replace(published_space("mobilenet_v3", width=1.2), resolutions=sides).genome
    rows = genome.sample(100, np.random.default_rng(0))
    codes = np.zeros((100, 128))
    codes[:, :120] = genome.one_hot(rows)[:, :120]
    codes[np.arange(100), 120 + (np.array(sides)[rows[:, 0]] - 112) // 16] = 1
    with np.load(path) as arrays:
        expected = torch_network(dict(arrays))(torch.from_numpy(codes))[:, 0].numpy()
    predicted = found.bind(genome)(rows)
    np.testing.assert_allclose(predicted, expected, rtol=0, atol=1e-5)
    assert 0.7 < predicted.min() < predicted.max() < 0.85


@pytest.mark.parametrize("name", ["proxyless", "resnet50d"])
def test_the_published_predictor_does_not_fit_other_spaces(
    published: Callable[[str], Path], name: str
) -> None:
    space = replace(published_space(name), resolutions=(160,))
    with pytest.raises(ConfigError, match=r"reads codes of 120 \+ 8 inputs"):
        read_accuracy(published("mbv3_accuracy_predictor.npz")).bind(space.genome)
