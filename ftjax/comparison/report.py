"""The report of a comparison: a table and two plots, as Markdown and as one HTML file."""

import base64
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ftjax.comparison.plots import draw
from ftjax.comparison.row import Row, examples_of, headings
from ftjax.files import write_text
from ftjax.html import document, table, tag, text

RATES = "Learning rates"
TRIED = "Validation metric of each rate with the first seed; the best was kept."


def markdown_table(rows: Sequence[Row]) -> str:
    """The table, its columns aligned."""
    cells = [headings(rows), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| "
        + " | ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in cells
    ]
    marks = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rule = "| " + " | ".join(marks) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def latex_table(rows: Sequence[Row]) -> str:
    """The table as LaTeX, which needs the package booktabs."""

    def line(cells: Iterable[str]) -> str:
        return " & ".join(re.sub(r"([&%$#_{}])", r"\\\1", cell) for cell in cells) + r" \\"

    lines = [line(row.cells()).replace("±", r"$\pm$") for row in rows]
    columns = "l" + "r" * (len(headings(rows)) - 1)
    head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(headings(rows)), r"\midrule"]
    return "\n".join([*head, *lines, r"\bottomrule", r"\end{tabular}"])


def html_table(rows: Sequence[Row]) -> str:
    """The table as HTML."""
    return table(headings(rows), [row.cells() for row in rows])


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know to read the table."""
    run = rows[0].results[0]
    split = rows[0].split
    results = rows[0].results
    count, folds = examples_of(results, split), {result.get("fold") for result in results} - {None}
    runs = f"{len({result['seed'] for result in results})} seed(s)"
    if rows[0].of_examples:
        kind = (
            f"is Wilson's, of the {count:,} {split} examples alone, as if the mean over seeds were "
            "one model's: it says how far more such examples could move the score of these trained "
            "models, and nothing of what other seeds would give"
        )
    else:
        kind = (
            "is Student's, of the mean over seeds: it says where more seeds would bring it on the "
            "same examples, and nothing of what other examples would give"
        )
    constant = [result["metrics"][split].get("baseline", {}) for result in results]
    data = Path(run["data"].partition(":")[2]).name
    paragraphs = [
        f"Model `{run['model']}`, task {run['task']}, data `{data}`, "
        f"{runs}, {count:,} {split} examples.",
        f"Scores are of the {split} split, run once on the checkpoint with the best validation "
        "metric; ± is the standard deviation over seeds, and beside it are the lowest and the "
        f"highest. The interval {kind}.",
        "Seconds are of the training phase, without compilation and evaluation; tokens are real "
        "ones, without padding; memory is the peak of the whole process.",
    ]
    if all(rows[0].metric in scores for scores in constant):
        value = statistics.fmean(scores[rows[0].metric] for scores in constant)
        paragraphs.insert(
            1, f"An answer that is always the same has {rows[0].spoken_metric} {value:.3f}."
        )
    if folds:
        paragraphs.append(
            f"Cross-validation: the rows to train on are in {len(folds)} parts, each of which is "
            "the validation split of one run a seed, and scores are of these. The checkpoint of a "
            "run is the best on its own part, which makes its score a little too high; ± and the "
            "range are over folds and seeds."
        )
    cached = [row.method for row in rows if row.results[0].get("cached_frozen")]
    if cached:
        paragraphs.append(
            f"{', '.join(cached)}: the frozen backbone was run once, without dropout, and its "
            "outputs trained on; tokens count each pass over the data."
        )
    paragraphs += [
        f"{row.method}: nothing is trained; the template chosen on validation is "
        f"“{row.results[0]['template']}”, and seconds are those of choosing it."
        for row in rows
        if "template" in row.results[0]
    ]
    return paragraphs


def grid_table(scores: Mapping[str, Mapping[float, float]]) -> list[str]:
    """Lines that say what each learning rate of a grid came to on validation."""
    lines = [f"- {line}" for line in _grids(scores)]
    return [f"## {RATES}", "", TRIED, "", *lines, ""] if scores else []


def _grids(scores: Mapping[str, Mapping[float, float]]) -> list[str]:
    return [
        f"{method}: {', '.join(f'{rate:g}: {value:.3f}' for rate, value in by_rate.items())}"
        for method, by_rate in scores.items()
    ]


def write_report(
    folder: Path,
    rows: Sequence[Row],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    grids: Mapping[str, Mapping[float, float]] = MappingProxyType({}),
) -> None:
    """Writes report.md, report.html and the plots.

    Args:
        folder: of the study.
        rows: one a method.
        curves: rows of metrics.jsonl of each method's first seed.
        grids: validation metric of the learning rates that were tried for a method.
    """
    plots = draw(rows, curves)
    for name, image in plots.items():
        path = folder / f"{name}.png"
        path.write_bytes(image)
    text = ["# Comparison of fine-tuning methods", "", markdown_table(rows), ""]
    text += [f"- {note}" for note in notes(rows)]
    text += ["", *(f"![{name.replace('_', ' ')}]({name}.png)" for name in plots), ""]
    text += grid_table(grids)
    write_text(folder / "report.md", "\n".join(text))
    write_text(folder / "report.html", _html(rows, plots, grids))


def _html(
    rows: Sequence[Row], plots: Mapping[str, bytes], grids: Mapping[str, Mapping[float, float]]
) -> str:
    images = [
        f'<img alt="{name.replace("_", " ")}" '
        f'src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        for name, image in plots.items()
    ]
    parts = [tag("ul", "".join(map(_item, notes(rows)))), *images]
    if grids:
        parts += [tag("h2", RATES), tag("p", TRIED), tag("ul", "".join(map(_item, _grids(grids))))]
    title = "Comparison of fine-tuning methods"
    return document(title, [tag("h1", title), html_table(rows), *parts])


def _item(note: str) -> str:
    """A remark of the Markdown page as one of a list."""
    return tag("li", re.sub(r"`([^`]*)`", r"<code>\1</code>", text(note)))
