"""Pages to look at: one file of HTML each, without scripts, alike for all reports."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Point = tuple[float, float]
SERIES = ("#2b6cb0", "#c05621", "#2f7d55", "#6b46c1")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 70em; margin: 2em auto;
  padding: 0 1.2em }
h1 { font-size: 1.7em; margin: 0 0 .2em } h2 { font-size: 1.25em; margin: 2.2em 0 .5em }
h3 { font-size: 1em; margin: 1.6em 0 .3em } .quiet, th { color: #66788a; font-weight: normal }
table { border-collapse: collapse; width: 100% }
th, td { border-bottom: 1px solid #e4e7eb; padding: .3em .7em; text-align: left;
  vertical-align: top }
th { font-size: .87em } tr.first > td { border-top: 2px solid #cbd2d9 }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.name { white-space: nowrap } .said { overflow-wrap: anywhere; min-width: 14em }
.fall { color: #b83232 } .rise { color: #2f7d55 } code { font-size: .95em }
.cards { display: flex; flex-wrap: wrap; gap: 1em; margin: 1.2em 0 }
.card { flex: 1 1 0; min-width: 12em; overflow-wrap: anywhere; border: 1px solid #e4e7eb;
  border-top-width: 4px; border-radius: 6px; padding: .7em 1em }
.big { font-size: 1.6em; font-variant-numeric: tabular-nums }
.plots { display: flex; flex-wrap: wrap; gap: 1.2em } .plots > div { flex: 1 1 20em }
.narrow { width: auto } .warning { background: #fdf3e1; border-left: 4px solid #c05621;
  padding: .4em .9em; margin: .5em 0 } img { max-width: 100%; display: block; margin: 1em 0 }
svg { display: block; width: 100%; height: auto } td svg { width: 11em; display: inline-block }
svg text { font: 11px system-ui, sans-serif; fill: #66788a }
.chip { background: #f0f4f8; border-radius: 4px; padding: 0 .45em; margin-right: .3em;
  display: inline-block; font-size: .9em } mark { background: #fdecc8 }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A page of parts, of which empty ones are left out."""
    body = "\n".join(filter(None, parts))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n{body}\n"
        "</body></html>\n"
    )


def text(value: Any) -> str:
    """A value as text of a page; whole numbers with commas."""
    return html.escape(f"{value:,}" if isinstance(value, int) else str(value))


def tag(name: str, inside: str, style: str = "") -> str:
    return f'<{name} class="{style}">{inside}</{name}>' if style else f"<{name}>{inside}</{name}>"


def line(cells: Iterable[str], style: str = "") -> str:
    """A row of a table."""
    return tag("tr", "".join(cells), style)


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], style: str = "") -> str:
    """A table, the first column of names and the others of numbers."""
    kinds = ["name", *["number"] * (len(headings) - 1)]
    lines = [line(tag("th", text(h), k) for h, k in zip(headings, kinds, strict=True))]
    for row in rows:
        cells = zip(row, kinds, strict=True)
        lines.append(line(tag("td", text(shown(cell)), kind) for cell, kind in cells))
    return tag("table", "".join(lines), style)


def shown(value: Any) -> Any:
    """A number as it is read easily; other values as they are."""
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) and abs(value) < 1e4 else f"{value:.4g}"
    return "" if value is None else value


def percent(share: float) -> str:
    """A share with two decimals, or where it is small two digits."""
    return f"{share:.2%}" if share >= 1e-3 or not share else f"{100 * share:.2g}%"


def curves(title: str, series: Mapping[str, Sequence[Point]], below: str = "step") -> str:
    """Lines over a common axis, 480 by 220; points that are not finite are left out."""
    series = {
        name: [(x, y) for x, y in points if y is not None and math.isfinite(y)]
        for name, points in series.items()
    }
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    every = [point for points in series.values() for point in points]
    (left, right), (low, high) = (_range([p[axis] for p in every]) for axis in (0, 1))

    def place(x: float, y: float) -> str:
        across, up = (x - left) / (right - left), (y - low) / (high - low)
        return f"{52 + 418 * across:.1f},{182 - 168 * up:.1f}"

    drawn = []
    for i, label in enumerate(_labels(low, high)):
        y = 182 - 42 * i
        drawn.append(f'<line x1="52" x2="470" y1="{y}" y2="{y}" stroke="#e4e7eb"/>')
        drawn.append(f'<text x="46" y="{y + 4}" text-anchor="end">{label}</text>')
    whole = {round(left + (right - left) * i / 4) for i in range(5)}
    for value in sorted(value for value in whole if left <= value <= right):
        x = place(value, low).partition(",")[0]
        drawn.append(f'<text x="{x}" y="198" text-anchor="middle">{value:,}</text>')
    drawn.append(f'<text x="261" y="215" text-anchor="middle">{text(below)}</text>')
    names = []
    for (name, points), colour in zip(series.items(), SERIES, strict=False):
        path = " ".join(place(*point) for point in points)
        style = f'fill="none" stroke="{colour}" stroke-width="1.6"'
        drawn.append(f'<polyline points="{path}" {style}/>')
        if len(points) < 40:
            spots = (place(*point).split(",") for point in points)
            drawn += [f'<circle cx="{x}" cy="{y}" r="2.4" fill="{colour}"/>' for x, y in spots]
        names.append(f'<span style="color:{colour}">{text(name)}</span>')
    legend = f' <span class="quiet">{", ".join(names)}</span>' if len(series) > 1 else ""
    figure = f'<svg viewBox="0 0 480 220" role="img">{"".join(drawn)}</svg>'
    return f"<div><b>{text(title)}</b>{legend}{figure}</div>"


def _labels(low: float, high: float) -> list[str]:
    """Five numbers from one to the other, with as many digits as tell them apart."""
    values = [low + (high - low) * i / 4 for i in range(5)]
    digits = next(d for d in range(3, 18) if len({f"{v:.{d}g}" for v in values}) == 5 or d == 17)
    small = max(map(abs, values)) < 1e-3
    return [f"{v:.{digits - 2}e}" if small and v else f"{v:.{digits}g}" for v in values]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The ends of an axis: of one value a tenth of it around."""
    low, high = min(values), max(values)
    around = abs(low) / 10 or 0.5
    return (low, high) if high > low else (low - around, high + around)
