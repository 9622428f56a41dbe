"""The page of a comparison: what stands in it, and that it needs nothing but itself."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opa_trt.errors import BackendUnavailable
from opa_trt.evaluate.compare_page import latency_plots, page, write_page
from opa_trt.evaluate.compare_page.palette import LOOKS

VOID = {"meta", "link", "br", "img", "hr", "use", "path", "circle", "rect", "line"}
FETCHES = {"script", "img", "iframe", "object", "embed", "image", "audio", "video", "source"}


class Reader(HTMLParser):
    """Ids, local links, what would be fetched, and whether every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.local: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.counts: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.counts[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        for key in ("href", "xlink:href"):
            if given.get(key, "").startswith("#"):
                self.local.append(given[key][1:])
        self.local += re.findall(r"url\(#([^)]+)\)", " ".join(given.values()))
        if tag in FETCHES or (tag == "link" and not given["href"].startswith("data:")):
            self.fetched.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def text(written: Path) -> str:
    return (written / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def markup(report: dict[str, Any]) -> str:
    """The page without plots."""
    return page.markup(report, {})


def cells(text: str, caption: str) -> list[list[str]]:
    """The rows of the table whose caption begins so, as text."""
    start = text.index(f"<caption>{caption}")
    body = text[start : text.index("</table>", start)]
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", body, re.DOTALL)
    return [
        [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in rows
    ]


# --- by itself ----------------------------------------------------------------------------------


def test_it_fetches_nothing_and_runs_nothing(read: Reader, text: str) -> None:
    assert read.fetched == []
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert not re.search(r"\son\w+=", text)


def test_its_tags_are_closed_and_its_ids_are_one_each(read: Reader) -> None:
    assert read.open == []
    assert [name for name, times in Counter(read.ids).items() if times > 1] == []


def test_every_link_within_it_leads_somewhere(read: Reader) -> None:
    assert set(read.local) <= set(read.ids)
    assert len(read.local) > 10


def test_the_same_report_makes_the_same_page(report: Any, text: str) -> None:
    drawn = latency_plots.frontier(report)
    assert drawn is not None
    assert drawn.svg in text
    assert markup(report) == markup(report)


# --- plots --------------------------------------------------------------------------------------


def test_every_plot_is_in_the_page_with_words_for_it_and_beside_it(
    written: Path, read: Reader, text: str
) -> None:
    files = {path.stem for path in written.glob("*.png")}
    assert files == {
        "accuracy-latency", "in-time-accuracy", "largest-at-less-latency", "gain-by-group",
        "group-sizes", "content", "timeline-load-0", "timeline-load-2",
    }  # fmt: skip
    assert read.counts["svg"] == len(files)
    alts = re.findall(r'<svg [^>]*role="img" aria-label="([^"]+)"', text)
    assert len(set(alts)) == len(files)
    assert min(map(len, alts)) > 40
    for stem in files:
        assert f'href="{stem}.png"' in text
        with Image.open(written / f"{stem}.png") as image:
            assert min(image.size) > 300


def test_plots_keep_their_words_as_text(text: str) -> None:
    plots = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "median latency of a group, ms</text>" in plots
    assert "2 applications</text>" in plots


def test_plots_take_on_the_hues_of_the_page(text: str) -> None:
    plots = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--arm-opa_split)" in plots
    assert "var(--ink)" in plots
    assert re.findall(r"#[0-9a-f]{6}\b", plots) == []


def test_no_two_arms_share_a_hue_or_a_mark() -> None:
    for field in ("light", "dark", "marker"):
        assert len({getattr(look, field) for look in LOOKS.values()}) == len(LOOKS)


# --- figures ------------------------------------------------------------------------------------


def test_every_goal_has_its_verdict_and_its_figure(report: Any) -> None:
    text = markup(report)
    items = re.findall(r'<li><span class="verdict.*?</div></li>', text, re.DOTALL)
    plain = [" ".join(re.sub(r"<[^>]+>", " ", item).split()) for item in items]
    assert plain[0].startswith("met the text of ahead +2.1 points [+1.1, +3.1] against +60.0")
    assert plain[1].startswith("not met the text of deadlines 95.3 % [94.3, 96.3] against 60.0 %")
    assert plain[2].startswith("not resolved the text of latency – against 60.0 %")


def test_it_says_where_we_lose(report: Any) -> None:
    text = markup(report)
    assert "2 applications, 16.0 ms: −3.1 [−4.1, −2.1] points against best static route" in text
    rows = cells(text, "opa_split against each baseline")
    assert rows[1:] == [
        ["Dynamic-OFA", "4", "2", "2", "0"],
        ["best static route", "4", "2", "0", "2"],
    ]


def test_it_says_so_where_no_baseline_is_ahead(report: Any) -> None:
    report["differences"] = [row for row in report["differences"] if row["load"] == 0]
    text = markup(report)
    assert "At no judged deadline is a baseline surely ahead" in text
    assert "Where we lose" not in text


def test_a_difference_without_an_interval_is_not_a_loss(report: Any) -> None:
    for row in report["differences"]:
        row["in_time_accuracy"] = {"mean": -0.2, "low": None, "high": None}
    assert "Where we lose" not in markup(report)


def test_tables_have_the_reports_figures(report: Any) -> None:
    text = markup(report)
    means = cells(text, "Mean over the judged deadlines, idle")
    assert means[1] == [
        "opa_split (ours)", "89.0 % [88.0, 90.0]", "90.0 % [89.0, 91.0]", "99.0 %", "7.00",
    ]  # fmt: skip
    assert cells(text, "Decision: ")[1] == [
        "opa_split (ours)", "idle", "0.0900", "0.200", "0.110", "0.300", "7.00", "8.00", "2.8 %",
        "50 %",
    ]  # fmt: skip
    assert cells(text, "By the size of a group")[1][:5] == [
        "1", "opa_split (ours)", "1.10", "6", "84.0 % [83.0, 85.0]",
    ]  # fmt: skip
    assert cells(text, "idle, deadline 4.00 ms (not judged)")[1][-1] == "tail1 75 %, pioneer 25 %"


def test_missed_deadlines_are_summed_over_the_judged_ones(report: Any) -> None:
    rows = {(row[0], row[1]): row[2:] for row in cells(markup(report), "Missed deadlines")}
    assert rows["Dynamic-OFA", "idle"] == ["12", "4", "33.3 %", "2", "1.25", "0.500"]
    assert rows["opa (ours)", "idle"] == ["12", "0", "0.0 %", "0", "–", "–"]


def test_it_says_which_images_did_what_and_on_which_machine(report: Any) -> None:
    text = markup(report)
    for expected in (
        "1,000 images trained the networks", "400 images, sha256 dddddddddddddddd…, 4,000 rows",
        "2 cores of A Processor", "opa_trt 0.1.0, Python 3.12.3, torch 2.11, null 1",
        "cascade is left out: this bundle has no nodes for cascade.", "how static_best decides",
    ):  # fmt: skip
        assert expected in text


# --- what may be missing or odd -----------------------------------------------------------------


def test_a_run_of_which_nothing_was_finished_still_has_a_page(nothing: Any, tmp_path: Path) -> None:
    write_page(nothing, tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert "Partial: the run was interrupted" in text
    assert "<svg" not in text
    assert 'id="goals"' not in text
    assert 'id="split"' in text


def test_few_groups_have_no_intervals(report: Any) -> None:
    for row in (*report["results"], *report["means"], *report["differences"]):
        for key in ("accuracy", "in_time_accuracy"):
            row[key] = row[key] | {"low": None, "high": None}
    for row in report["frontier"]["points"]:
        row["against_largest"] |= {"low": None, "high": None}
    assert "None" not in markup(report)
    drawn = latency_plots.in_time(report), latency_plots.frontier(report)
    assert all(picture is not None for picture in drawn)


def test_a_replay_and_shared_images_are_told(report: Any) -> None:
    report["replay"] = "earlier"
    report["split"]["overlap"]["trained"] = 7
    report["split"]["same_data"] = False
    text = markup(report)
    assert "Replayed from earlier: no engine ran" in text
    assert "Of the test images 7 are among those that trained" in text
    assert "not those that the bundle was built with" in text


def test_names_are_text_and_never_markup(report: Any) -> None:
    report["bundle"]["name"] = "<script>alert(1)</script>"
    report["bundle"]["nodes"][0]["name"] = 'a"<b>'
    report["left_out"] = {"opa": "<img src=x>"}
    text = markup(report)
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_an_arm_that_is_new_has_a_look(report: Any) -> None:
    report["arms"][2]["name"] = "newcomer"
    for row in report["results"]:
        row["arm"] = row["arm"].replace("dynamic_ofa", "newcomer")
    drawn = latency_plots.accuracy_latency(report)
    assert drawn is not None
    assert "var(--arm-other)" in drawn.svg
    assert ">newcomer</text>" in drawn.svg


def test_without_matplotlib_nothing_is_written(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match="plots"):
        write_page(report, tmp_path / "page")
    assert not (tmp_path / "page").exists()
