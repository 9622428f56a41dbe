"""The page in a real browser: it renders, without complaints and without the network."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--hide-scrollbars",
)  # fmt: skip
ITS_OWN = re.compile(r"https?://[\w.-]*google(apis)?\.com/")  # that the browser asks by itself

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here"),
]


@dataclass(frozen=True)
class Seen:
    """What the console said, what was asked of the network, and the picture."""

    console: list[str]
    asked: list[str]
    shot: Path


def see(page: Path, folder: Path, width: int = 1200) -> Seen:
    try:
        return _see(page, folder / "first", width)
    except subprocess.TimeoutExpired:  # a browser hangs once in a while before it loads anything
        return _see(page, folder / "second", width)


def _see(page: Path, folder: Path, width: int) -> Seen:
    folder.mkdir()
    log, shot = folder / "net.json", folder / "shot.png"
    ran = subprocess.run(
        [
            str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}",
            f"--log-net-log={log}", f"--window-size={width},3000", f"--screenshot={shot}",
            page.as_uri(),
        ],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    asked = re.findall(r'"url":"(https?://[^"]+)"', log.read_text(encoding="utf-8"))
    console = [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    return Seen(console, [url for url in asked if not ITS_OWN.match(url)], shot)


def test_it_renders_without_errors_and_without_the_network(written: Path, tmp_path: Path) -> None:
    seen = see(written / "index.html", tmp_path)
    assert seen.console == []
    assert seen.asked == []
    with Image.open(seen.shot) as image:
        colours = image.convert("RGB").getcolors(1 << 20) or []
    assert len(colours) > 50
    assert (0, 114, 178) in {colour for _, colour in colours}  # a plot's line of opa_split


def test_a_page_that_asks_for_more_would_be_found_out(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://elsewhere.example/x.png'><script>missing()</script>")
    seen = see(page, tmp_path)
    assert any("missing is not defined" in line for line in seen.console)
    assert any("elsewhere.example" in url for url in seen.asked)


@pytest.mark.parametrize("width", [500, 1200])
def test_nothing_is_wider_than_the_window(written: Path, tmp_path: Path, width: int) -> None:
    """Only tables and plots scroll, each by itself: measured by a script in a copy of the page."""
    text = (written / "index.html").read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]+>', "", text)
    measure = "console.log('wide ' + (document.documentElement.scrollWidth - innerWidth))"
    page = tmp_path / "measured.html"
    page.write_text(text.replace("</body>", f"<script>{measure}</script></body>"), encoding="utf-8")
    (line,) = see(page, tmp_path, width).console
    found = re.search(r"wide (-?\d+)", line)
    assert found is not None
    assert int(found.group(1)) <= 0
