"""Images and splits, the digits, and folders of pictures with everything that can be wrong."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from opa_trt.errors import BadImageError, DataError
from opa_trt.training import data as data_module
from opa_trt.training.data import Images, Splits, draw, read_images
from opa_trt.training.digits import load_digits, proportions
from opa_trt.training.folder import LAYOUT, image_files, load_folder

CIFAR = Path(__file__).parents[2] / ".." / "shared" / "data" / "cifar10-jpeg.zip"


def save(
    path: Path, colour: tuple[int, ...] = (200, 30, 90), size: tuple[int, int] = (8, 8)
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def noise_picture(path: Path, side: int = 64) -> Path:
    """A picture that fills its file, so that half a file is not the whole of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def truncate(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """10 pictures of each of cat and dog in train, 3 in test; a picture's red is its number."""
    for split, count in (("train", 10), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            for number in range(count):
                colour = (10 * number + (5 if split == "test" else 0), 100 * label, 0)
                save(tmp_path / split / name / f"{number}.png", colour)
    return tmp_path


def reds(images: Images) -> set[tuple[int, int]]:
    """(label, red) of every image: which file it came from."""
    pairs = zip(images.labels, images.pixels[:, 0, 0, 0], strict=True)
    return {(int(label), int(red)) for label, red in pairs}


# Images


def some_images(count: int = 6, size: int = 4) -> Images:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (count, 3, size, size), np.uint8)
    return Images(pixels, np.arange(count) % 3, ("a", "b", "c"))


def test_images_are_read_only() -> None:
    images = some_images()
    with pytest.raises(ValueError, match="read-only"):
        images.pixels[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        images.labels[0] = 0
    assert repr(images) == "Images(6 of 3x4x4, 3 classes)"


@given(rows=st.lists(st.integers(0, 5)))
def test_select_takes_rows_in_order(rows: list[int]) -> None:
    images = some_images()
    chosen = images.select(rows)
    assert len(chosen) == len(rows)
    assert chosen.classes == images.classes
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(chosen.pixels[place], images.pixels[row])
        assert chosen.labels[place] == images.labels[row]


def test_select_takes_a_mask() -> None:
    images = some_images()
    assert images.select(images.labels == 1).labels.tolist() == [1, 1]


def test_digest_sees_pixels_labels_classes_and_nothing_else() -> None:
    images = some_images()
    pixels = images.pixels.copy()
    pixels[0, 0, 0, 0] ^= 1
    others = [
        Images(pixels, images.labels, images.classes),
        Images(images.pixels, images.labels[::-1], images.classes),
        Images(images.pixels, images.labels, ("a", "b", "d")),
        images.select(range(5)),
        images.select([]),
    ]
    digests = {images.digest(), *(other.digest() for other in others)}
    assert len(digests) == 6
    assert images.select(range(6)).digest() == images.digest()
    assert len(images.digest()) == 64


@pytest.mark.parametrize(
    ("pixels", "labels", "match"),
    [
        (np.zeros((2, 3, 4, 5), np.uint8), [0, 0], "pixels are uint8 of shape"),
        (np.zeros((2, 3, 4, 4), np.float32), [0, 0], "pixels are float32"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0], "labels are int64 of shape"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0.0, 1.0], "labels are float64"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0, 2], "labels run from 0 to 2 for 2 classes"),
    ],
)
def test_images_that_do_not_fit_together_are_refused(
    pixels: npt.NDArray[Any], labels: list[Any], match: str
) -> None:
    with pytest.raises(DataError, match=match):
        Images(pixels, np.array(labels), ("a", "b"))


@given(labels=st.lists(st.integers(0, 3), min_size=1), quota=st.integers(0, 5), seed=st.integers(0))
def test_draw_meets_every_quota_once(labels: list[int], quota: int, seed: int) -> None:
    drawn = draw(np.array(labels), [quota] * 4, seed)
    assert len(set(drawn.tolist())) == len(drawn)
    for label in range(4):
        chosen = sum(labels[row] == label for row in drawn)
        assert chosen == min(quota, labels.count(label))


# Digits


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load_digits()


def test_digits_are_split_exactly(digits: Splits) -> None:
    assert [len(digits.train), len(digits.fit), len(digits.test)] == [1000, 397, 400]
    assert digits.train.pixels.shape == (1000, 3, 32, 32)
    assert digits.train.classes == tuple("0123456789")
    assert digits.skipped == ()


def test_digits_are_stratified(digits: Splits) -> None:
    parts = [digits.train, digits.fit, digits.test]
    counts = np.array([np.bincount(part.labels, minlength=10) for part in parts])
    shares = counts.sum(0) * np.array([[1000], [397], [400]]) / 1797
    assert np.abs(counts - shares).max() <= 1.5
    assert counts.sum(0).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_use_the_whole_range_in_equal_channels(digits: Splits) -> None:
    pixels = digits.train.pixels
    assert (pixels.min(), pixels.max()) == (0, 255)
    np.testing.assert_array_equal(pixels[:, 0], pixels[:, 2])


def test_digits_depend_on_the_seed_alone(digits: Splits) -> None:
    small, again, other = load_digits(8), load_digits(8), load_digits(8, seed=1)
    assert small.test.digest() == again.test.digest()
    assert small.test.digest() != other.test.digest()
    np.testing.assert_array_equal(small.test.labels, digits.test.labels)


def test_digits_are_disjoint() -> None:
    splits = load_digits(8)
    parts = [splits.train, splits.fit, splits.test]
    assert len({image.tobytes() for part in parts for image in part.pixels}) == 1797


def test_missing_scikit_learn_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"(?s)scikit-learn.*pip install opa-trt\[build\]"):
        load_digits()


def test_digits_of_no_size_are_refused() -> None:
    with pytest.raises(DataError, match="0 px is not positive"):
        load_digits(0)


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=8), share=st.floats(0, 1))
def test_proportions_add_up_and_stay_close(counts: list[int], share: float) -> None:
    total = int(share * sum(counts))
    quotas = proportions(counts, total)
    assert sum(quotas) == total
    for quota, count in zip(quotas, counts, strict=True):
        assert quota <= count
        assert abs(quota - count * total / sum(counts)) < 1


# Pictures


@pytest.mark.parametrize("extension", ["jpg", "JPEG", "png", "BMP", "webp"])
def test_every_format_is_read(tmp_path: Path, extension: str) -> None:
    path = save(tmp_path / f"one.{extension}", (200, 30, 90), (16, 16))
    assert image_files(tmp_path) == [path]
    pixels, kept, bad = read_images([path], 16)
    assert (kept, bad) == ([path], [])
    np.testing.assert_allclose(pixels.mean((0, 2, 3)), [200, 30, 90], atol=6)


def test_the_centre_is_kept_and_the_shorter_side_fits(tmp_path: Path) -> None:
    wide = Image.new("RGB", (40, 16), (255, 0, 0))
    wide.paste((0, 255, 0), (12, 0, 28, 16))
    wide.save(tmp_path / "wide.png")
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "tall.png")
    pixels, _, _ = read_images(image_files(tmp_path), 8)
    assert pixels.shape == (2, 3, 8, 8)
    assert (pixels[:, 1] == 255).all()
    assert (pixels[:, 0] == 0).all()


def test_pictures_of_the_right_size_are_not_changed(tmp_path: Path) -> None:
    path = noise_picture(tmp_path / "a.png", 16)
    expected = np.asarray(Image.open(path)).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_images([path], 16)[0][0], expected)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "a.png", exif=exif)
    pixels, _, _ = read_images([tmp_path / "a.png"], 8)
    assert pixels[0, :, 0, 0].tolist() == [255, 0, 0]
    assert pixels[0, :, 7, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(path)
    else:
        Image.new("RGB", (8, 8), "white").convert(mode).save(path)
    assert read_images([path], 8)[0].min() > 250


def test_16_bit_greys_are_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)).save(tmp_path / "a.png")
    assert (read_images([tmp_path / "a.png"], 8)[0] == 100).all()


def test_files_are_listed_deep_sorted_and_without_the_hidden(tmp_path: Path) -> None:
    wanted = [save(tmp_path / name) for name in ("a/b.png", "a/c/d.jpg", "z.png")]
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".cache" / "x.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    assert image_files(tmp_path) == wanted


def test_listing_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent does not exist"):
        image_files(tmp_path / "absent")
    with pytest.raises(DataError, match=r"a\.png is not a folder"):
        image_files(save(tmp_path / "a.png"))


@pytest.mark.parametrize("extension", ["jpg", "png", "bmp", "webp"])
def test_a_truncated_picture_is_bad(tmp_path: Path, extension: str) -> None:
    path = truncate(noise_picture(tmp_path / f"half.{extension}"))
    with pytest.raises(BadImageError, match=rf"1 of 1 images cannot be read: .*half\.{extension}"):
        read_images([path], 8)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_other_unreadable_files_are_bad(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "other.jpg", format="TIFF")
    good = save(tmp_path / "z.png")
    pixels, kept, bad = read_images(image_files(tmp_path), 8, skip_bad_images=True)
    assert [path.name for path in bad] == ["empty.jpg", "link.png", "other.jpg", "text.png"]
    assert kept == [good]
    assert pixels[0, :, 0, 0].tolist() == [200, 30, 90]


@pytest.mark.parametrize("most", [100, 200])
def test_a_decompression_bomb_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    path = save(tmp_path / "bomb.png", size=(15, 15))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    with pytest.raises(BadImageError, match=r"bomb\.png"):
        read_images([path], 8)


def test_all_bad_pictures_are_counted_and_five_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:02}.jpg" for number in range(30)]
    for path in paths:
        path.touch()
    with pytest.raises(BadImageError, match="30 of 30 images") as caught:
        read_images(paths, 8)
    assert caught.value.paths == tuple(paths)
    assert "04.jpg and 25 more." in caught.value.received
    assert "05.jpg" not in caught.value.received
    assert "--skip-bad-images" in caught.value.remedy


def test_kept_pixels_follow_their_paths(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n:02}.png", (n, n, n)) for n in range(40)]
    for path in paths[::3]:
        path.write_bytes(b"")
    pixels, kept, bad = read_images(paths, 8, skip_bad_images=True)
    assert bad == paths[::3]
    assert [int(path.stem) for path in kept] == pixels[:, 0, 0, 0].tolist()


def test_progress_counts_up_to_the_total(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.png") for n in range(20)]
    calls: list[tuple[int, int]] = []
    read_images(paths, 8, progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (20, 20)


def test_no_pictures_give_an_empty_array() -> None:
    pixels, kept, bad = read_images([], 8)
    assert (pixels.shape, kept, bad) == ((0, 3, 8, 8), [], [])


def test_more_than_memory_holds_is_refused() -> None:
    with pytest.raises(DataError, match=r"(?s)100 images of 6000 px need 10\.1 GiB.*limit=N"):
        read_images([Path("absent.png")] * 100, 6000)
    with pytest.raises(DataError, match="0 px is not positive"):
        read_images([], 0)


# Folders


def test_a_folder_becomes_disjoint_splits(tree: Path) -> None:
    splits = load_folder(tree, 8, holdout=0.3, seed=4)
    assert splits.train.classes == splits.test.classes == ("cat", "dog")
    counts = [np.bincount(part.labels).tolist() for part in (splits.train, splits.fit, splits.test)]
    assert counts == [[7, 7], [3, 3], [3, 3]]
    assert not reds(splits.train) & reds(splits.fit)
    every = {(label, 10 * number) for label in range(2) for number in range(10)}
    assert reds(splits.train) | reds(splits.fit) == every
    assert reds(splits.test) == {(label, 10 * n + 5) for label in range(2) for n in range(3)}


def test_a_folder_is_read_the_same_way_each_time(tree: Path) -> None:
    first, again, other = (load_folder(tree, 8, seed=seed) for seed in (0, 0, 1))
    for name in ("train", "fit", "test"):
        assert getattr(first, name).digest() == getattr(again, name).digest()
    assert reds(first.fit) != reds(other.fit)


def test_val_stands_in_for_test(tree: Path) -> None:
    expected = load_folder(tree, 8).test.digest()
    (tree / "test").rename(tree / "val")
    assert load_folder(str(tree), 8).test.digest() == expected
    save(tree / "test" / "unlabelled.png")
    assert load_folder(tree, 8).test.digest() == expected


def test_test_may_lack_a_class_of_train(tree: Path) -> None:
    for path in image_files(tree / "test" / "cat"):
        path.unlink()
    (tree / "test" / "cat").rmdir()
    assert set(load_folder(tree, 8).test.labels.tolist()) == {1}


def test_limit_keeps_a_seeded_choice_of_each_class(tree: Path) -> None:
    splits = load_folder(tree, 8, limit=2, seed=1)
    assert [len(splits.train), len(splits.fit), len(splits.test)] == [2, 2, 4]
    assert reds(splits.test) <= reds(load_folder(tree, 8).test)
    choices = {tuple(sorted(reds(load_folder(tree, 8, limit=2, seed=s).test))) for s in range(9)}
    assert len(choices) > 1


def test_folder_progress_counts_every_split(tree: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_folder(tree, 8, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (26, 26)


def test_bad_images_of_a_folder_stop_it_or_are_listed(tree: Path) -> None:
    bad = [tree / "train" / "cat" / "3.png", tree / "test" / "dog" / "0.png"]
    for path in bad:
        path.write_bytes(b"no picture")
    with pytest.raises(BadImageError, match=r"(?s)2 of 26 images.*--skip-bad-images") as caught:
        load_folder(tree, 8)
    assert set(caught.value.paths) == set(bad)
    splits = load_folder(tree, 8, skip_bad_images=True)
    assert set(splits.skipped) == set(bad)
    assert reds(splits.test) == {(0, 5), (0, 15), (0, 25), (1, 15), (1, 25)}
    assert (0, 30) not in reds(splits.train) | reds(splits.fit)


@pytest.mark.parametrize(
    ("where", "match"),
    [
        ("train/dog", "no readable image of class 'dog' is left in train"),
        ("test", "no readable image is left in test"),
    ],
)
def test_too_many_bad_images_cannot_be_skipped(tree: Path, where: str, match: str) -> None:
    for path in image_files(tree / where):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=match):
        load_folder(tree, 8, skip_bad_images=True)


def refuse(root: Path, match: str, **options: Any) -> None:
    with pytest.raises(DataError, match=match) as caught:
        load_folder(root, 8, **options)
    assert caught.value.expected == LAYOUT
    assert caught.value.remedy


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "absent", "absent does not exist")
    refuse(save(tmp_path / "a.png"), r"a\.png is not a folder")


def test_missing_splits_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path, "has no folder 'train'")
    save(tmp_path / "train" / "cat" / "a.png")
    refuse(tmp_path, "has neither a folder 'test' nor 'val'")


def test_too_few_classes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "train" / ".hidden").mkdir(parents=True)
    refuse(tmp_path, "train has no class folders; at least 2 are needed")
    save(tmp_path / "train" / "images" / "a.png")
    refuse(tmp_path, r"train has 1 class folder \('images'\); at least 2 are needed\.")


def test_an_empty_class_folder_is_named(tree: Path) -> None:
    (tree / "train" / "emu").mkdir()
    refuse(tree, r"class folder .*train/emu has no images")


def test_a_class_that_train_lacks_is_named(tree: Path) -> None:
    save(tree / "test" / "emu" / "a.png")
    refuse(tree, r"test has the class folder 'emu', which .*train lacks")


def test_a_test_folder_without_classes_is_refused(tree: Path) -> None:
    (tree / "test").rename(tree / "old")
    save(tree / "test" / "a.png")
    refuse(tree, r"test has no class folders")


def test_one_image_a_class_cannot_be_held_out(tree: Path) -> None:
    refuse(tree, "train has 2 images, 1 of each class", limit=1)


@pytest.mark.parametrize("holdout", [0, -0.1, 0.51, float("nan")])
def test_a_holdout_out_of_range_is_refused(tree: Path, holdout: float) -> None:
    with pytest.raises(DataError, match=r"(?s)holdout .* is out of range.*at most 0\.5"):
        load_folder(tree, 8, holdout=holdout)


def test_a_limit_below_one_is_refused(tree: Path) -> None:
    with pytest.raises(DataError, match="limit 0 is out of range"):
        load_folder(tree, 8, limit=0)


def test_a_folder_larger_than_memory_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_module, "MOST_BYTES", 26 * 3 * 8 * 8 - 1)
    with pytest.raises(DataError, match=r"(?s)26 images of 8 px.*limit"):
        load_folder(tree, 8)


@settings(max_examples=20, deadline=None)
@given(holdout=st.floats(0.01, 0.5), seed=st.integers(0, 99))
def test_every_class_is_in_train_and_in_fit(
    tmp_path_factory: pytest.TempPathFactory, holdout: float, seed: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "uneven"
    if not root.exists():
        for name, count in (("a", 2), ("b", 7), ("c", 3)):
            for number in range(count):
                save(root / "train" / name / f"{number}.png")
        save(root / "test" / "a" / "0.png")
    splits = load_folder(root, 8, holdout=holdout, seed=seed)
    fit = np.bincount(splits.fit.labels, minlength=3)
    assert (fit + np.bincount(splits.train.labels)).tolist() == [2, 7, 3]
    assert (np.abs(fit - np.maximum(1, np.array([2, 7, 3]) * holdout)) <= 0.5).all()


def test_cifar10_as_jpeg_files(tmp_path: Path) -> None:
    if not CIFAR.exists():
        pytest.skip("shared/data/cifar10-jpeg.zip is not on this machine")
    with zipfile.ZipFile(CIFAR) as archive:
        for name in archive.namelist():
            if name.endswith(("000.jpg", "001.jpg", "002.jpg")) and "/0" in name:
                archive.extract(name, tmp_path)
    splits = load_folder(tmp_path, 32, holdout=0.34)
    assert len(splits.train.classes) == 10
    assert [len(splits.train), len(splits.fit), len(splits.test)] == [20, 10, 30]
    assert splits.train.pixels.std() > 40
