"""The picture of a bench: a panel a backend, a line a route, plain numbers on both axes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from opa_trt.errors import BackendUnavailable
from opa_trt.evaluate.bench_picture import ENTRY, MOST_ROUTES, draw_bench
from opa_trt.evaluate.bench_rows import MONOLITH, NODE, ROUTE, Row

BATCHES = (1, 8, 32)


def rows_of(
    chosen: Sequence[str] = ("openvino",),
    tails: int = 3,
    *,
    batches: Sequence[int] = BATCHES,
    monoliths: bool = True,
) -> list[Row]:
    """Nodes, routes and monoliths that take longer by batch and by tail."""
    subjects: list[tuple[str, tuple[str, ...], float]] = [(NODE, ("pioneer",), 1.0)]
    for place in range(1, tails + 1):
        nodes = ("pioneer", f"tail{place}")
        subjects += [(NODE, nodes[1:], float(place)), (ROUTE, nodes, 1.0 + place)]
        if monoliths:
            subjects.append((MONOLITH, nodes, 0.9 + place))
    return [
        Row(kind, nodes, name, name, 2, batch, ((0.3 + 0.1 * batch) * size,) * 50)
        for name in chosen
        for batch in batches
        for kind, nodes, size in subjects
    ]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    seen: list[Figure] = []
    save = Figure.savefig

    def look(self: Figure, *arguments: Any, **options: Any) -> None:
        seen.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", look)
    return seen


def panels(figure: Figure) -> list[Any]:
    return [axis for axis in figure.axes if axis.get_visible()]


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_the_picture_is_a_png_and_nothing_else_is_left(tmp_path: Path) -> None:
    draw_bench(tmp_path / "bench.png", rows_of(), "a title")
    with Image.open(tmp_path / "bench.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 600
    assert [path.name for path in tmp_path.iterdir()] == ["bench.png"]


def test_each_backend_has_a_panel(tmp_path: Path, figures: list[Figure]) -> None:
    chosen = ("openvino", "onnxruntime", "torchscript", "inductor")
    draw_bench(tmp_path / "bench.png", rows_of(chosen), "a title")
    titles = [axis.get_title() for axis in panels(figures[0])]
    assert titles == [f"{name}, 2 threads" for name in chosen]


def test_a_panel_has_a_line_through_the_medians_of_each_route(
    tmp_path: Path, figures: list[Figure]
) -> None:
    rows = rows_of(monoliths=False)
    draw_bench(tmp_path / "bench.png", rows, "a title")
    drawn = [tuple(line.get_ydata()) for line in panels(figures[0])[0].get_lines()]
    for tail in ("tail1", "tail2", "tail3"):
        wanted = tuple(r.at(0.5) for r in rows if r.nodes == ("pioneer", tail))
        assert wanted in drawn
    assert len(drawn) == 4  # and the entry


def test_monoliths_are_dashed_in_the_colour_of_their_route(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_bench(tmp_path / "bench.png", rows_of(), "a title")
    lines = panels(figures[0])[0].get_lines()
    solid = {line.get_color() for line in lines if line.get_linestyle() == "-"}
    dashed = [line.get_color() for line in lines if line.get_linestyle() == "--"]
    assert len(dashed) == 3
    assert set(dashed) == solid - {ENTRY}


def test_the_legend_names_routes_once_and_explains_lines(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_bench(tmp_path / "bench.png", rows_of(("openvino", "onnxruntime")), "a title")
    named = [text for text in labels(figures[0]) if text.startswith("pioneer")]
    assert named == ["pioneer → tail3", "pioneer → tail2", "pioneer → tail1", "pioneer"]
    assert {"median", "up to p99", "as one engine, median"} <= set(labels(figures[0]))


def test_without_monoliths_the_legend_does_not_speak_of_them(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_bench(tmp_path / "bench.png", rows_of(monoliths=False), "a title")
    assert "as one engine, median" not in labels(figures[0])


def test_of_many_routes_some_are_drawn_the_ends_among_them(
    tmp_path: Path, figures: list[Figure]
) -> None:
    draw_bench(tmp_path / "bench.png", rows_of(tails=40), "a title")
    named = [text for text in labels(figures[0]) if "→" in text]
    assert len(named) == MOST_ROUTES
    assert (named[0], named[-1]) == ("pioneer → tail40", "pioneer → tail1")


def test_axes_are_logarithmic_with_plain_numbers(tmp_path: Path, figures: list[Figure]) -> None:
    draw_bench(tmp_path / "bench.png", rows_of(), "a title")
    (axis,) = panels(figures[0])
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "8", "32"]
    assert {"1", "2", "5", "10"} <= {text.get_text() for text in axis.get_yticklabels()}


def test_one_batch_size_is_enough(tmp_path: Path, figures: list[Figure]) -> None:
    draw_bench(tmp_path / "bench.png", rows_of(batches=(8,)), "a title")
    (axis,) = panels(figures[0])
    assert [text.get_text() for text in axis.get_xticklabels()] == ["8"]


def test_a_bundle_of_nodes_without_successors_is_drawn(
    tmp_path: Path, figures: list[Figure]
) -> None:
    rows = [row for row in rows_of() if row.kind == NODE]
    draw_bench(tmp_path / "bench.png", rows, "a title")
    assert len(panels(figures[0])[0].get_lines()) == 4


def test_auto_says_what_it_chose(tmp_path: Path, figures: list[Figure]) -> None:
    rows = [
        Row(NODE, ("pioneer",), "auto", backend, 1, batch, (1.0,))
        for batch, backend in ((1, "onnxruntime"), (8, "openvino"))
    ]
    draw_bench(tmp_path / "bench.png", rows, "a title")
    assert panels(figures[0])[0].get_title() == "auto (onnxruntime and openvino), 1 thread"


def test_figures_do_not_pile_up(tmp_path: Path) -> None:
    from matplotlib import pyplot as plt

    before = plt.get_fignums()
    draw_bench(tmp_path / "bench.png", rows_of(), "a title")
    assert plt.get_fignums() == before


def test_without_matplotlib_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match="matplotlib") as caught:
        draw_bench(tmp_path / "bench.png", rows_of(), "a title")
    assert caught.value.remedy == "pip install 'opa-trt[plots]'"
    assert list(tmp_path.iterdir()) == []
