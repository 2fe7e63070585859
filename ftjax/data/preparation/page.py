"""data_report.html: what data_report.json says, to look at. One file, without scripts."""

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

from ftjax.data.preparation.words import HAN
from ftjax.html import document, line, tag, text

Row = Mapping[str, Any]
COLOURS = {"train": "#2b6cb0", "validation": "#c05621", "test": "#2f7d55"}
LABELS, CHIPS = 40, 12  # that are shown, the most frequent
PIECES = re.compile(rf"[^\W{HAN}]+|.", re.DOTALL)
USUAL = ("step", "split", "rows_in", "rows_out", "added", "reasons", "examples", "changes")


def page(report: Sequence[Row]) -> str:
    """The page of a report as `ftjax.data.preparation.pipeline.prepare` makes it."""
    before = {row["split"]: row for row in report if row["step"] == "source"}
    after = {row["split"]: row for row in report if row["step"] == "prepared"}
    drawn = any(row["step"] == "split" and row["rows_in"] != row["rows_out"] for row in report)
    left_out = ("source", "prepared") if drawn else ("source", "prepared", "split")
    done = [row for row in report if row["step"] not in left_out]
    parts = [
        "<h1>Data report</h1>",
        '<p class="quiet">What was read, what each step of preparation did, and what was left.</p>',
        _cards(before, after),
        _steps(done),
        _labels(before, after),
        _lengths(after),
        _examples(done),
    ]
    return document("Data report", parts)


def _heads(*names: str) -> str:
    numbers = ("rows in", "rows out", "row")
    return line(tag("th", name, "number" if name in numbers else "") for name in names)


def _colour(split: str) -> str:
    return COLOURS.get(split, "#4a5568")


def _cards(before: Mapping[str, Row], after: Mapping[str, Row]) -> str:
    cards = []
    for name, row in after.items():
        source = before.get(name)
        came = f"{text(source['rows_out'])} were read" if source else "drawn from train"
        cards.append(
            f'<div class="card" style="border-top-color:{_colour(name)}"><div>{text(name)}</div>'
            f'<div class="big">{text(row["rows_out"])} rows</div>'
            f'<div class="quiet">{came}<br>{text(row["file"])}</div></div>'
        )
    return tag("div", "".join(cards), "cards") if cards else ""


def _steps(rows: Sequence[Row]) -> str:
    lines = [_heads("step", "split", "rows in", "rows out", "", "what was counted")]
    for step, step_rows in groupby(rows, key=lambda row: row["step"]):
        for number, row in enumerate(step_rows):
            more = row["rows_out"] - row["rows_in"]
            sign = "rise" if more > 0 else "fall"
            name = tag("code", text(step)) if not number else ""
            cells = [
                tag("td", name, "name"),
                tag("td", text(row["split"]), "name"),
                tag("td", text(row["rows_in"]), "number"),
                tag("td", text(row["rows_out"]), "number"),
                tag("td", f"{more:+,}" if more else "", f"number {sign}"),
                tag("td", _counts(row)),
            ]
            lines.append(line(cells, "" if number else "first"))
    return f"<h2>Steps</h2>\n<table>{''.join(lines)}</table>" if rows else ""


def _counts(row: Row) -> str:
    """Reasons, and whatever else a step has counted."""
    others = {name: row[name] for name in row if name not in USUAL and row[name]}
    counts = {**{k.replace("_", " "): v for k, v in others.items()}, **row.get("reasons", {})}
    shown = list(counts.items())[:CHIPS]
    if rest := list(counts.values())[CHIPS:]:
        shown.append((f"{len(rest)} others", sum(rest)))
    return " ".join(tag("span", f"{text(name)}: {text(count)}", "chip") for name, count in shown)


def _bar(share: float, colour: str, faint: float | None = None) -> str:
    """A bar of a share of 1, over the one that it was before."""
    old = f'<rect width="{180 * faint:.1f}" height="14" fill="#dde3ea"/>' if faint else ""
    return (
        f'<svg viewBox="0 0 180 14" role="img">{old}'
        f'<rect y="3" width="{180 * share:.1f}" height="8" fill="{colour}"/></svg>'
    )


def _labels(before: Mapping[str, Row], after: Mapping[str, Row]) -> str:
    """Shares of labels, a column a split."""
    shares = {name: _shares(row) for name, row in after.items() if row.get("labels")}
    if not shares:
        return ""
    every = dict.fromkeys(label for split_shares in shares.values() for label in split_shares)
    most = max(share for split_shares in shares.values() for share in split_shares.values())
    ranked = sorted(every, key=lambda label: -max(s.get(label, 0) for s in shares.values()))
    shown = set(ranked[:LABELS])
    lines = [line(tag("th", text(name)) for name in ("label", *shares))]
    for label in (label for label in every if label in shown):
        cells = [tag("td", text(label))]
        for name, split_shares in shares.items():
            share, old = split_shares.get(label, 0.0), _shares(before.get(name, {})).get(label, 0.0)
            count = after[name]["labels"].get(label, 0)
            bar = _bar(share / most, _colour(name), min(old / most, 1.0))
            cells.append(tag("td", f"{bar} {text(count)} ({share:.1%})"))
        lines.append(line(cells))
    rest = len(every) - len(shown)
    note = f" The {LABELS} most frequent labels; {rest:,} others are not shown." if rest else ""
    return (
        f'<h2>Labels</h2>\n<p class="quiet">Share of each split; in grey, as it was read.{note}'
        f"</p>\n<table>{''.join(lines)}</table>"
    )


def _shares(row: Row) -> dict[str, float]:
    labels = row.get("labels", {})
    total = sum(labels.values()) or 1
    return {label: count / total for label, count in labels.items()}


def _lengths(after: Mapping[str, Row]) -> str:
    plots = [
        tag("div", _plot(name, row["lengths"])) for name, row in after.items() if row.get("lengths")
    ]
    note = '<p class="quiet">Characters of a row; the last bar has all that are longer.</p>'
    return f'<h2>Lengths</h2>\n{note}\n<div class="plots">{"".join(plots)}</div>' if plots else ""


def _plot(name: str, lengths: Mapping[str, Any]) -> str:
    """A histogram of shares, 320 by 130."""
    counts, edges = lengths["counts"], lengths["edges"]
    width, most, bars = 320 / len(counts), max(counts) or 1, []
    for i, count in enumerate(counts):
        height = 96 * count / most
        bars.append(
            f'<rect x="{i * width + 0.5:.1f}" y="{112 - height:.1f}" width="{width - 1:.1f}" '
            f'height="{height:.1f}" fill="{_colour(name)}"><title>from {edges[i]}: {count:,}'
            "</title></rect>"
        )
    every = max(1, len(edges) // 5)
    ticks = "".join(
        f'<text x="{i * width:.1f}" y="126">{edge:,}</text>'
        for i, edge in enumerate(edges)
        if i % every == 0
    )
    median, p95, largest = (lengths[name] for name in ("median", "p95", "max"))
    spread = f"median {median:,}, 95% up to {p95:,}, at most {largest:,}"
    axis = '<line y1="112.5" y2="112.5" x2="320" stroke="#cbd2d9"/>'
    return (
        f'<b>{text(name)}</b> <span class="quiet">{spread}</span>'
        f'<svg viewBox="0 0 320 130" role="img">{"".join(bars)}{axis}{ticks}</svg>'
    )


def _dropped(dropped: Sequence[tuple[str, Row]]) -> str:
    """Rows with their split and the reason, which names the row where that could not be read."""
    names = {"row": "row", "text": "dropped", "reason": "why"}
    names = {key: name for key, name in names.items() if key in dropped[0][1]}
    lines = [_heads("split", *names.values())]
    for split, row in dropped:
        cells = [tag("td", text(row[key]), "number" if key == "row" else "said") for key in names]
        lines.append(line([tag("td", text(split), "name"), *cells]))
    return f"<table>{''.join(lines)}</table>"


def _examples(rows: Sequence[Row]) -> str:
    parts = []
    for step, step_rows in groupby(rows, key=lambda row: row["step"]):
        step_rows = list(step_rows)
        dropped = [
            (row["split"], example) for row in step_rows for example in row.get("examples", ())
        ]
        changed = [
            line(
                [
                    tag("td", text(row["split"]), "name"),
                    tag("td", text(change["row"]), "number"),
                    *(
                        tag("td", part, "said")
                        for part in _marked(change["before"], change["after"])
                    ),
                ]
            )
            for row in step_rows
            for change in row.get("changes", ())
        ]
        if dropped or changed:
            parts.append(f"<h3><code>{text(step)}</code></h3>")
        if dropped:
            parts.append(_dropped(dropped))
        if changed:
            heads = _heads("split", "row", "before", "after")
            parts.append(f"<table>{heads}{''.join(changed)}</table>")
    return "<h2>Examples</h2>\n" + "\n".join(parts) if parts else ""


def _marked(before: str, after: str) -> tuple[str, str]:
    """Both texts, with the words that differ marked."""
    old, new = PIECES.findall(before), PIECES.findall(after)
    marked: tuple[list[str], list[str]] = ([], [])
    for how, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        for parts, pieces in zip(marked, (old[a:b], new[c:d]), strict=True):
            piece = text("".join(pieces))
            parts.append(piece if how == "equal" or not piece else tag("mark", piece))
    return "".join(marked[0]), "".join(marked[1])
