"""Write a report as one HTML file that opens offline: no script, nothing fetched, light and dark.

The page is also well-formed XML (every element is closed), so that any parser can check it. Checkboxes alone hide
series (CSS ``:has``). In a browser without ``:has``, the page says so and shows all series.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from trtbatch.reporting.results import clean
from trtbatch.reporting.series import METRICS, Series
from trtbatch.reporting.summary import WORDS, cells, columns, notes, run_facts, summary
from trtbatch.reporting.svg import chart, sample
from trtbatch.reporting.theme import DARK, DARK_PAPER, LIGHT, LIGHT_PAPER
from trtbatch.util.files import atomic_file
from trtbatch.util.version import __version__

__all__ = ["page", "write_page"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Content security policy of the page: a browser loads nothing, so even an escaping mistake can't fetch or run code."""

STYLE = """
:root { color-scheme: light dark; --paper: LIGHT_PAPER; --ink: #1a1f24; --soft: #4d5761; --rule: #d3d9df;
  --raised: #f5f7f9; --focus: #0b5cad; LIGHT_COLOURS }
@media (prefers-color-scheme: dark) { :root { --paper: DARK_PAPER; --ink: #e8ecf0; --soft: #aab4be; --rule: #39424b;
  --raised: #1c2229; --focus: #7db8ff; DARK_COLOURS } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 100rem; margin: 0 auto; padding: 1.5rem clamp(1rem, 3vw, 3rem) 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .8rem; }
h1, p, li, label, caption, .facts td { overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); }
fieldset { border: 1px solid var(--rule); border-radius: .5rem; margin: 0; padding: .4rem 1rem .8rem; min-width: 0; }
legend { padding: 0 .4rem; color: var(--soft); }
.toggles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 1.5rem; }
fieldset label { display: flex; flex-wrap: wrap; align-items: center; gap: .1rem .7rem; padding: .35rem 0; }
fieldset label span { flex: 1 1 14rem; }
input[type=checkbox] { width: 1.2rem; height: 1.2rem; accent-color: var(--focus); margin: 0; }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; border-radius: 2px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.2rem; }
figure { margin: 0; padding: 1rem; border: 1px solid var(--rule); border-radius: .5rem; min-width: 0; }
figure h3 { margin: 0 0 .5rem; font-size: 1.05rem; }
figure svg { display: block; width: 100%; height: auto; font: 13px system-ui, sans-serif; }
figcaption { font-size: .9rem; margin-top: .6rem; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 41rem), 1fr)); gap: 1.5rem;
  align-items: start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .4rem; }
th, td { padding: .3rem .35rem; border-bottom: 1px solid var(--rule); text-align: right; }
th { font-weight: 600; white-space: nowrap; }
thead th { color: var(--soft); border-bottom-width: 2px; }
th.word, td.word { text-align: left; }
td { white-space: nowrap; }
.facts td { min-width: 9rem; white-space: normal; }
tr.knee { background: var(--raised); }
.grid { stroke: var(--rule); fill: none; }
.axis { stroke: var(--soft); fill: none; }
.tick, .name { fill: var(--soft); }
.line { fill: none; stroke: var(--c); stroke-width: 2; }
.marker { fill: var(--c); stroke: var(--paper); stroke-width: 1; }
.knee { fill: none; stroke: var(--c); stroke-width: 2; }
.band { fill: var(--c); opacity: .16; }
.whisker { stroke: var(--c); stroke-width: 1; opacity: .6; }
.key { fill: var(--c); font-weight: 700; stroke: var(--paper); stroke-width: 3; paint-order: stroke; }
.bound { fill: none; stroke: var(--c); }
.letter { font-weight: 700; color: var(--c); min-width: 1.3em; }
@supports selector(:has(a)) { .old { display: none; } }
@media (prefers-reduced-motion: reduce) { * { animation: none; transition: none; scroll-behavior: auto; } }
@media print { main { max-width: none; padding: 0; } figure, table { break-inside: avoid; } }
"""

_CAPTIONS = (
    "Median, with a band up to the 99th percentile. A ring marks the knee. Lower is better.",
    "From the median, with a band down to what the 99th percentile of the time leaves. A ring marks the knee. "
    "Higher is better.",
    "Median, with a band up to the 99th percentile, over the batch size. A ring marks the knee. Lower is better.",
)

_BOUNDS = " Below: what bounds each batch size: launch (L), memory (M), compute (C), copy (Cp)."


def write_page(series: Sequence[Series], title: str, path: Path) -> None:
    """Write the page to a file, complete or not at all."""
    with atomic_file(path) as made:
        made.write_text(page(series, title), encoding="utf-8")


def page(series: Sequence[Series], title: str) -> str:
    """Return the whole page; `title` says what all series have in common."""
    shown = escape(clean(title))
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8" />',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}" />',
        '<meta name="viewport" content="width=device-width, initial-scale=1" />',
        f'<meta name="generator" content="trtbatch {escape(__version__)}" />',
        '<link rel="icon" href="data:," />',
        f"<title>{shown}: time per batch</title>",
        f"<style>{_style(len(series))}</style>",
        "</head>",
        "<body>",
        "<main>",
        f'<header><h1>Time per batch</h1><p class="soft">{shown}</p></header>',
        *_toggles(series),
        *_charts(series),
        *_tables(series),
        *_runs(series),
        '<section aria-labelledby="notes"><h2 id="notes">How to read this</h2><ul>',
        *(f"<li>{escape(note)}</li>" for note in notes(series)),
        "</ul></section>",
        "</main>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _style(count: int) -> str:
    colours = {
        "LIGHT_COLOURS": " ".join(f"--c{index}: {colour};" for index, colour in enumerate(LIGHT)),
        "DARK_COLOURS": " ".join(f"--c{index}: {colour};" for index, colour in enumerate(DARK)),
        "LIGHT_PAPER": LIGHT_PAPER,
        "DARK_PAPER": DARK_PAPER,
    }
    style = STYLE
    for name, value in colours.items():
        style = style.replace(name, value)
    kinds = "\n".join(f".c{index} {{ --c: var(--c{index}); }}" for index in range(len(LIGHT)))
    hides = "\n".join(f"body:has(#show{index}:not(:checked)) .s{index} {{ display: none; }}" for index in range(count))
    return f"{style}{kinds}\n{hides}\n"


def _toggles(series: Sequence[Series]) -> Iterator[str]:
    yield '<section aria-labelledby="series"><h2 id="series">Series</h2><fieldset>'
    yield '<legend>Shown in charts and tables</legend><div class="toggles">'
    for index, line in enumerate(series):
        words = f'<b>{escape(line.label)}</b><br /><span class="soft">{escape(summary(line))}</span>'
        yield (
            f'<label for="show{index}"><input type="checkbox" id="show{index}" checked="checked" />'
            f'<b class="letter c{index % len(LIGHT)}">{line.key}</b>{sample(index)}<span>{words}</span></label>'
        )
    yield '</div><p class="old soft">This browser can’t hide series: all are shown.</p>'
    yield "</fieldset></section>"


def _charts(series: Sequence[Series]) -> Iterator[str]:
    yield '<section aria-labelledby="charts"><h2 id="charts">Charts</h2><div class="charts">'
    bounded = any(point.bound for line in series for point in line.points)
    for index, (metric, caption) in enumerate(zip(METRICS, _CAPTIONS, strict=True)):
        bounds = metric.unit == "samples/s" and bounded
        yield f"<figure><h3>{escape(metric.name)}</h3>"
        yield chart(series, metric, f"chart{index}", bounds)
        yield f"<figcaption>{escape(caption + (_BOUNDS if bounds else ''))}</figcaption></figure>"
    yield "</div></section>"


def _tables(series: Sequence[Series]) -> Iterator[str]:
    yield '<section aria-labelledby="figures"><h2 id="figures">Figures</h2><div class="tables">'
    for index, line in enumerate(series):
        shown = columns([line])
        yield f'<div class="scroll s{index}" role="region" tabindex="0" aria-labelledby="table{index}"><table>'
        yield f'<caption id="table{index}">{escape(f"{line.key} · {line.label}")}</caption><thead><tr>'
        yield "".join(f'<th scope="col"{_kind(name)}>{_heading(name)}</th>' for name in shown)
        yield "</tr></thead><tbody>"
        for point in line.points:
            found = cells(line, point)
            row = "".join(f"<td{_kind(name)}>{escape(found[name])}</td>" for name in shown[1:])
            mark = ' class="knee"' if found["mark"] else ""
            yield f'<tr{mark}><th scope="row">{point.batch}</th>{row}</tr>'
        yield "</tbody></table></div>"
    yield "</div></section>"


def _heading(name: str) -> str:
    return {"mark": "note", "p99": "p99, ms"}.get(name, name)


def _kind(name: str) -> str:
    return ' class="word"' if name in WORDS else ""


def _runs(series: Sequence[Series]) -> Iterator[str]:
    """Yield a table of what each series was measured with, one column per series."""
    measured = [(index, line, run_facts(line.result)) for index, line in enumerate(series) if line.result is not None]
    yield '<section aria-labelledby="runs"><h2 id="runs">Measured with</h2>'
    yield '<div class="scroll" role="region" tabindex="0" aria-labelledby="facts"><table class="facts">'
    yield '<caption id="facts">Engine, machine and software of each series</caption><thead><tr>'
    yield '<th scope="col" class="word">series</th>'
    yield "".join(f'<th scope="col" class="word s{index}">{line.key}</th>' for index, line, _ in measured)
    yield "</tr></thead><tbody>"
    for name in dict.fromkeys(name for _, _, facts in measured for name, fact in facts.items() if fact):
        row = "".join(f'<td class="word s{index}">{escape(facts[name])}</td>' for index, _, facts in measured)
        yield f'<tr><th scope="row" class="word">{escape(name)}</th>{row}</tr>'
    yield "</tbody></table></div></section>"
