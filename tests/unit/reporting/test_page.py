"""The page of a report: what it says, that it fetches nothing, and how it behaves in a browser where there is one."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.support.results import timed
from trtbatch.reporting.page import page, write_page
from trtbatch.reporting.series import series_of, shared
from trtbatch.reporting.theme import DARK, DARK_PAPER, DASHES, LIGHT, LIGHT_PAPER, MARKERS

HOSTILE = (
    "<script>window.taken = 1</script>\"'&amp;]]> $x^2$ \x1b[31m\x00\ud800\u202e<img src=x onerror='window.taken=2'>"
)
SVG = "{http://www.w3.org/2000/svg}"

Result = tuple[str, Any]


def results() -> list[Result]:
    """Two modes with bounds, a precision without, and a file with one batch."""
    bounded = timed(lambda b: 0.2 + 0.01 * b, mode="graph", bound=lambda b: "enqueue-bound" if b < 8 else "copy-bound")
    plain = timed(lambda b: 0.5 + 0.02 * b, mode="execute_v2", precision="tf32")
    return [("g.json", bounded), ("e.json", plain), ("one.json", timed(lambda b: 0.4, batches=(4,), mode="async"))]


def hostile() -> list[Result]:
    found = timed(lambda b: 0.2 + 0.01 * b, mode=HOSTILE, precision=HOSTILE, model=HOSTILE, gpu=HOSTILE)
    return [(HOSTILE, found), ("b.json", timed(lambda b: 0.3, mode="graph", bound=lambda b: HOSTILE))]


def made(found: list[Result]) -> str:
    return page(series_of(found, True), shared(found))


def tree(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


class _Tags(HTMLParser):
    """Every tag as an HTML parser sees it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("found", [results(), hostile()], ids=["plain", "hostile"])
def test_it_is_whole_and_asks_for_nothing(found: list[Result]) -> None:
    text = made(found)
    text.encode("utf-8")
    root = tree(text)
    assert root.attrib["lang"] == "en"
    tags = _Tags(text).found
    assert "script" not in {tag for tag, _ in tags}
    assert "img" not in {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "data:,") == "data:,"
    assert not re.search(r"url\(|@import|https?://", text.replace(HOSTILE, ""))
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in tags)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        for name in ("aria-labelledby", "for"):
            assert set((attributes.get(name) or "").split()) <= set(ids)


def test_the_same_results_give_the_same_page() -> None:
    assert made(results()) == made(results())


def test_headings_tables_figures_and_labels() -> None:
    root = tree(made(results()))
    levels = [int(element.tag[1]) for element in root.iter() if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    tables = list(root.iter("table"))
    assert len(tables) == 5  # one a series, and what they were measured with
    for table in tables:
        assert "".join(table.find("caption").itertext()).strip()  # type: ignore[union-attr]
        assert all(cell.get("scope") == "col" for cell in table.findall("thead/tr/th"))
        assert all(row.find("th").get("scope") == "row" for row in table.findall("tbody/tr"))  # type: ignore[union-attr]
    figures = list(root.iter("figure"))
    assert len(figures) == 3
    for figure in figures:
        chart = figure.find("svg")
        assert chart is not None
        assert chart.get("role") == "img"
        assert chart.findtext("title")
        assert "knee at batch" in (chart.findtext("desc") or "")
        assert figure.findtext("figcaption")
    boxes = list(root.iter("input"))
    assert len(boxes) == 4
    assert all(box.get("type") == "checkbox" for box in boxes)
    labels = {label.get("for"): "".join(label.itertext()) for label in root.iter("label")}
    assert all(labels[box.get("id")].strip() for box in boxes)
    for scroll in root.iter("div"):
        if scroll.get("role") == "region":
            assert scroll.get("tabindex") == "0"
            assert scroll.get("aria-labelledby")


def test_every_series_has_its_figures_its_knee_and_its_bounds() -> None:
    found = results()
    root = tree(made(found))
    tables = {"".join(table.find("caption").itertext())[0]: table for table in root.iter("table")}  # type: ignore[union-attr]
    names = [cell.text for cell in tables["A"].findall("thead/tr/th")]
    rows = [[cell.text or "" for cell in row] for row in tables["A"].findall("tbody/tr")]
    first = dict(zip(names, rows[0], strict=True))
    assert first["batch"] == "1"
    assert first["ms/batch"] == "0.210"
    assert first["bound"] == "launch"
    assert first["samples/s"] == f"{1e3 / 0.21:,.0f}"
    assert [row[0] for row in rows if "knee" in row] == [str(series_of(found)[0].knee)]
    text = made(found)
    for words in (">launch<", ">copy<", "V100, from the article", "Kneedle"):
        assert words in text
    assert text.count('class="knee"') > 0


def test_a_title_that_is_code_is_shown_as_text() -> None:
    text = made(hostile())
    assert any("<script>window.taken = 1</script>" in words for words in tree(text).itertext())
    assert not any((ord(char) < 32 and char != "\n") or char == "\u202e" for char in text)


def test_it_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results()
    target = tmp_path / "r.html"
    write_page(series_of(found), shared(found), target)
    before = target.read_text(encoding="utf-8")
    monkeypatch.setattr("trtbatch.reporting.page.page", lambda *args: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_page(series_of(found), shared(found), target)
    assert target.read_text(encoding="utf-8") == before
    assert list(tmp_path.iterdir()) == [target]


def _luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(first: str, second: str) -> float:
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize(("colours", "paper"), [(LIGHT, LIGHT_PAPER), (DARK, DARK_PAPER)])
def test_colours_stand_out_from_the_paper(colours: tuple[str, ...], paper: str) -> None:
    assert all(_contrast(colour, paper) >= 4.5 for colour in colours)


def test_series_differ_by_more_than_colour() -> None:
    assert len(set(DASHES)) == len(DASHES) == len(set(MARKERS)) == len(MARKERS) > len(LIGHT) == len(DARK)


# In a browser.


def _browser() -> str | None:
    """A Chromium that is installed, or playwright's."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"):
        found = shutil.which(name)
        if found is not None:
            return found
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as driver:
        path = str(driver.chromium.executable_path)
    return path if Path(path).exists() else None


class Browser:
    """A headless Chromium with one page, driven by the DevTools protocol over a pipe."""

    def __init__(self, binary: str, home: Path) -> None:
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        # Chromium reads its orders on descriptor 3 and answers on 4.
        flags = "--headless --disable-gpu --no-first-run --hide-scrollbars --remote-debugging-pipe"
        sandbox = "--no-sandbox" if hasattr(os, "geteuid") and os.geteuid() == 0 else ""
        line = f'exec "$0" {flags} {sandbox} --user-data-dir="$1" about:blank 3<&{to_read} 4>&{from_write}'
        self.process = subprocess.Popen(
            ["bash", "-c", line, binary, str(home)],
            pass_fds=(to_read, from_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        self.orders, self.answers = to_write, from_read
        self.buffer = b""
        self.count = 0
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log", "Accessibility"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **values: Any) -> Any:
        self.count += 1
        order: dict[str, Any] = {"id": self.count, "method": method, "params": values}
        if self.session is not None:
            order["sessionId"] = self.session
        os.write(self.orders, json.dumps(order).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + 60
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], max(0.0, end - time.monotonic()))
            block = os.read(self.answers, 1 << 16) if ready else b""
            if not block:
                raise TimeoutError("the browser doesn't answer")
            self.buffer += block
        message, _, self.buffer = self.buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, file: Path, width: int = 1280, scheme: str = "light") -> None:
        self.events.clear()
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=file.as_uri())
        for _ in range(200):
            if self.value("document.readyState") == "complete" and self.value("location.protocol") == "file:":
                return
            time.sleep(0.05)
        raise TimeoutError(f"{file} doesn't load")

    def value(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: str, number: int, text: str = "") -> None:
        values = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **values)
        self.send("Input.dispatchKeyEvent", type="keyUp", **values)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        os.close(self.orders)
        os.close(self.answers)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    binary = _browser()
    if binary is None:
        pytest.skip("no Chromium here: neither chromium nor google-chrome on PATH, nor playwright's")
    if os.name != "posix":
        pytest.skip("the browser is driven by inherited descriptors, which are Unix's")
    running = Browser(binary, tmp_path_factory.mktemp("browser"))
    yield running
    running.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = results()
    write_page(series_of(found, True), shared(found), tmp_path / "r.html")
    return tmp_path / "r.html"


CONTRAST = """
(() => {
  const channel = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const parse = text => (text.match(/[0-9.]+/g) || [0, 0, 0]).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const paper = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let seen = 0;
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || ['title', 'desc'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const colour = parse(element.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const pair = [light(colour), light(paper(element))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    seen += 1;
    if (ratio < 4.5) poor.push(node.data.trim() + ' ' + ratio.toFixed(2));
  }
  return [seen, poor];
})()
"""


@pytest.mark.parametrize(("scheme", "paper"), [("light", LIGHT_PAPER), ("dark", DARK_PAPER)])
def test_every_text_stands_out_in_light_and_dark(browser: Browser, file: Path, scheme: str, paper: str) -> None:
    browser.open(file, scheme=scheme)
    colour = "rgb({}, {}, {})".format(*(int(paper[index : index + 2], 16) for index in (1, 3, 5)))
    assert browser.value("getComputedStyle(document.body).backgroundColor") == colour
    seen, poor = browser.value(CONTRAST)
    assert seen > 100
    assert poor == []


@pytest.mark.parametrize("width", [320, 375, 768, 1280, 1920])
def test_nothing_is_cut_off_at_any_width(browser: Browser, file: Path, width: int) -> None:
    browser.open(file, width=width)
    assert browser.value("document.scrollingElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('figure svg')].map(e => e.getBoundingClientRect().width)"
    assert all(200 < each < 800 for each in browser.value(wide))
    inside = """[...document.querySelectorAll('figure svg')].every(svg => {
      const frame = svg.getBoundingClientRect();
      return [...svg.querySelectorAll('text')].every(text => {
        const box = text.getBoundingClientRect();
        return box.left >= frame.left - 1 && box.right <= frame.right + 1
          && box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
      });
    })"""
    assert browser.value(inside) is True


def test_series_are_switched_with_the_keyboard_alone(browser: Browser, file: Path) -> None:
    browser.open(file)
    browser.press("Tab", "Tab", 9)
    assert browser.value("document.activeElement.id") == "show0"
    assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert browser.value("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    shown = "[...document.querySelectorAll('.s%d')].filter(e => getComputedStyle(e).display !== 'none').length"
    before = browser.value(shown % 0)
    others = browser.value(shown % 1)
    assert before > 6
    browser.press(" ", "Space", 32, " ")
    assert browser.value("document.getElementById('show0').checked") is False
    assert browser.value(shown % 0) == 0
    assert browser.value(shown % 1) == others
    browser.press(" ", "Space", 32, " ")
    assert browser.value(shown % 0) == before
    reached = []
    for _ in range(12):
        browser.press("Tab", "Tab", 9)
        reached.append(browser.value("document.activeElement.id || document.activeElement.getAttribute('role')"))
    assert reached[:3] == ["show1", "show2", "show3"]
    assert "region" in reached


def test_what_a_screen_reader_is_told(browser: Browser, file: Path) -> None:
    browser.open(file)
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    told = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    names = {role: [name for each, name in told if each == role] for role, _ in told}
    pictures = names.get("image", names.get("img", []))
    assert [name.split(" by ")[0] for name in pictures] == [
        "Time per batch (ms)",
        "Throughput (samples/s)",
        "Time per sample (ms)",
    ]
    assert len(names["checkbox"]) == 4
    assert all("samples/s" in name for name in names["checkbox"])
    assert len(names["table"]) == 5
    assert all(names["table"])
    assert all(names["columnheader"])
    assert all(names["rowheader"])
    assert names["heading"][:2] == ["Time per batch", "Series"]
    assert "main" in names


def test_it_fetches_nothing_and_complains_of_nothing(browser: Browser, tmp_path: Path) -> None:
    found = hostile()
    target = tmp_path / "hostile.html"
    write_page(series_of(found, True), shared(found), target)
    browser.open(target)
    time.sleep(0.2)
    assert browser.value("window.taken === undefined") is True
    assert browser.value("document.querySelectorAll('script, img').length") == 0
    asked = [e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:")] == [target.as_uri()]
    assert [e for e in browser.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")] == []


def test_pictures_of_it_are_not_blank(browser: Browser, file: Path) -> None:
    import io

    from PIL import Image

    for scheme, width in itertools.product(("light", "dark"), (375, 1280)):
        browser.open(file, width=width, scheme=scheme)
        shot = base64.b64decode(browser.send("Page.captureScreenshot", captureBeyondViewport=True)["data"])
        colours = Image.open(io.BytesIO(shot)).convert("RGB").getcolors(1 << 24)
        assert colours is not None
        assert len(colours) > 50
