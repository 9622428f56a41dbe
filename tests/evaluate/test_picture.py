"""The picture of a stream: a PNG that replaces the old one, or a line that says what to install."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from opa_trt.errors import BackendUnavailable
from opa_trt.evaluate.picture import draw_stream
from opa_trt.evaluate.stream import Answer, Arm, StreamGroup

NODES = ["pioneer", "tail1", "tail2"]
DEADLINES = (4.0, 9.0)
ARMS = (("static:smallest", "static-small"), ("static:largest", "static-large"), ("opa", "opa"))


def stream_of(count: int, size: int = 4) -> list[StreamGroup]:
    """Clean, noisy, clean."""
    pixels, labels = np.zeros((size, 3, 8, 8), np.uint8), np.zeros(size, np.int64)
    kinds = [("clean", 0) if i % 7 < 3 else ("low_light", i % 4) for i in range(count)]
    return [StreamGroup(pixels, labels, family, severity) for family, severity in kinds]


def arms_of(count: int, deadlines: tuple[float, ...] = DEADLINES) -> list[Arm]:
    draw = np.random.default_rng(0)
    return [
        Arm(
            policy,
            label,
            deadline,
            tuple(
                Answer(float(draw.random()), True, float(draw.random() * 9), NODES[i % 3], 1.0)
                for i in range(count)
            ),
        )
        for deadline in deadlines
        for policy, label in ARMS
    ]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of twenty groups under two deadlines."""
    path = tmp_path_factory.mktemp("pictures") / "stream.png"
    draw_stream(path, stream_of(20), arms_of(20), NODES, "a title")
    return path


def test_the_picture_is_a_png(drawn: Path) -> None:
    with Image.open(drawn) as picture:
        picture.load()
        assert picture.format == "PNG"


def test_the_picture_is_large_enough_to_read(drawn: Path) -> None:
    with Image.open(drawn) as picture:
        width, height = picture.size
    assert 900 <= width <= 2000
    assert 700 <= height <= 1400


def test_there_is_something_in_the_picture(drawn: Path) -> None:
    with Image.open(drawn) as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colours, axis=0)) > 100


@pytest.mark.parametrize("colour", ["#1b6ca8", "#8a8a8a", "#d1495b"], ids=["opa", "small", "large"])
def test_every_policys_line_is_in_the_picture(drawn: Path, colour: str) -> None:
    wanted = np.array(list(bytes.fromhex(colour[1:])))
    with Image.open(drawn) as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (np.abs(colours.astype(int) - wanted).max(axis=1) <= 2).sum() > 50


def test_nothing_else_is_left_in_the_folder(drawn: Path) -> None:
    assert list(drawn.parent.iterdir()) == [drawn]


def test_every_deadline_has_a_column(tmp_path: Path) -> None:
    widths = []
    for deadlines in ((4.0,), (4.0, 9.0, 20.0)):
        path = tmp_path / "stream.png"
        draw_stream(path, stream_of(6), arms_of(6, deadlines), NODES, "a title")
        with Image.open(path) as picture:
            widths.append(picture.width)
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.02)


def test_every_deadline_is_in_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    save = Figure.savefig

    def look(self: Figure, *arguments: object, **options: object) -> None:
        rows = [self.axes[start : start + 3] for start in range(0, 12, 3)]
        seen.extend(axis.get_ylim()[1] for axis in rows[2])
        save(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", look)
    deadlines = (4.0, 9.0, 20.0)  # no answer takes longer than 9 ms
    draw_stream(tmp_path / "stream.png", stream_of(6), arms_of(6, deadlines), NODES, "a title")
    assert all(top > deadline for top, deadline in zip(seen, deadlines, strict=True))


def test_an_old_picture_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "stream.png"
    path.write_bytes(b"old")
    draw_stream(path, stream_of(5), arms_of(5, (4.0,)), NODES, "a title")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_figures_do_not_pile_up(tmp_path: Path) -> None:
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    draw_stream(tmp_path / "stream.png", stream_of(5), arms_of(5, (4.0,)), NODES, "a title")
    assert plt.get_fignums() == before


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match="matplotlib") as caught:
        draw_stream(tmp_path / "stream.png", stream_of(5), arms_of(5), NODES, "a title")
    assert caught.value.remedy == "pip install 'opa-trt[plots]'"
    assert list(tmp_path.iterdir()) == []
