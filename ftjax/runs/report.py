"""report.html: a single run to look at, of what its work folder holds."""

import heapq
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ftjax.files import write_text
from ftjax.formats.jsons import read_json
from ftjax.html import curves, document, line, percent, shown, table, tag, text
from ftjax.runs.predictions import REST, predictions_file
from ftjax.tasks.base import spoken
from ftjax.workdir.folder import read_labels
from ftjax.workdir.records import read_metrics, read_rows

SPLITS = ("validation", "test")
PARTS = ("row", "expected", "predicted")  # that every row of predictions has
WRONG = 40  # rows that are shown, the surest first
MATRIX = 25  # labels of a confusion matrix; of more, the most frequent confusions are shown
LABELS = ("label", "labels", "value", "tags", "answer", "preferred", "written")
SPACED = ("tokens", "tags")  # fields whose items are words
LINKS = (
    ("data_report.html", "what became of the data"),
    ("config.json", "the configuration"),
    ("metrics.jsonl", "what was logged"),
    ("result.json", "all numbers"),
)


def write_report(workdir: Path) -> None:
    """Writes report.html of a finished run."""
    result = read_json(workdir / "result.json")
    rows = read_metrics(workdir / "metrics.jsonl")
    labels = read_labels(workdir) if (workdir / "labels.json").exists() else ()
    last = [split for split in SPLITS if split in result["metrics"]][-1:]
    parts = [
        tag("h1", f"{text(result['method'])}, {text(result['task'].replace('_', ' '))}"),
        tag("p", _about(result), "quiet"),
        _cards(result),
        *(tag("div", text(warning), "warning") for warning in result.get("warnings", ())),
        _curves(rows, result["best_metric"]),
        _metrics(result),
    ]
    for split in last:
        scores = result["metrics"][split]
        parts += [_confusion(split, scores, labels), _classes(split, scores)]
        parts.append(_examples(split, read_rows(predictions_file(workdir, split), *PARTS)))
    parts.append(_links(workdir))
    write_text(workdir / "report.html", document(f"{result['method']}: {workdir.name}", parts))


def _about(result: Mapping[str, Any]) -> str:
    share = result["trainable_params"] / max(result["total_params"], 1)
    epochs = f", {result['epochs']:g} epochs" if result.get("epochs") else ""
    return "<br>".join(
        [
            f"Model {text(result['model'])}; data {text(result['data'].removeprefix('auto:'))}; "
            f"seed {result['seed']}",
            f"{result['trainable_params']:,} of {result['total_params']:,} parameters trained "
            f"({percent(share)}), learning rate {result['learning_rate']:g}",
            f"{result['steps']:,} steps{epochs}, {result['train_seconds']:,.1f} s; best at step "
            f"{result['best_step']:,}",
        ]
    )


def _cards(result: Mapping[str, Any]) -> str:
    """The metric that chose the best step, a card a split."""
    cards, metric = [], result["best_metric"]
    for split in (split for split in SPLITS if split in result["metrics"]):
        scores = result["metrics"][split]
        constant = scores.get("baseline", {}).get(metric)
        beside = "" if constant is None else f"always the same answer: {shown(constant)}<br>"
        cards.append(
            tag(
                "div",
                f"<div>{split} {text(_spelled(metric, scores))}</div>"
                f'<div class="big">{text(shown(scores.get(metric)))}</div>'
                f'<div class="quiet">{beside}{scores["examples"]:,} examples</div>',
                "card",
            )
        )
    return tag("div", "".join(cards), "cards")


def _spelled(metric: str, scores: Mapping[str, Any]) -> str:
    return spoken(metric, scores).replace("_", " ")


def _curves(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    def points(key: str) -> list[tuple[float, float]]:
        return [(row["step"], row[key]) for row in rows if row.get(key) is not None]

    losses = {"training": points("loss"), "validation": points("validation/loss")}
    plots = [
        curves("loss", losses),
        curves(f"validation {metric.replace('_', ' ')}", {metric: points(f"validation/{metric}")}),
        curves("learning rate", {"rate": points("learning_rate")}),
    ]
    drawn = "".join(plots)
    return f"<h2>Curves</h2>{tag('div', drawn, 'plots')}" if drawn else ""


def _metrics(result: Mapping[str, Any]) -> str:
    """Every number of every split, with that of the best answer that is always the same."""
    metrics, columns = result["metrics"], {}
    for split in (split for split in SPLITS if split in metrics):
        columns[split] = metrics[split]
        if constant := metrics[split].get("baseline"):
            columns[f"{split}, same answer"] = constant
    numbers = (float, int, type(None))
    every = dict.fromkeys(k for scores in columns.values() for k in scores)
    names = [k for k in every if all(isinstance(x.get(k), numbers) for x in columns.values())]
    spelled = {name: _spelled(name, next(iter(columns.values()))) for name in names}
    rows = [[spelled[name], *(scores.get(name) for scores in columns.values())] for name in names]
    return f"<h2>Metrics</h2>{table(['metric', *columns], rows, 'narrow')}" if rows else ""


def _confusion(split: str, scores: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Rows are true labels; a cell is the darker the more of its row are there."""
    counts = scores.get("confusion")
    if not counts or len(counts) != len(labels):
        return ""
    title = f"<h2>What was taken for what ({split})</h2>"
    if len(labels) > MATRIX:
        pairs = [
            (counts[i][j], labels[i], labels[j])
            for i in range(len(labels))
            for j in range(len(labels))
            if i != j and counts[i][j]
        ]
        rows = [(true, predicted, count) for count, true, predicted in heapq.nlargest(WRONG, pairs)]
        return title + table(["true label", "was called", "rows"], rows, "narrow")
    heads = [tag("th", "true label"), *(tag("th", text(name), "number") for name in labels)]
    lines = [line(heads)]
    for name, row in zip(labels, counts, strict=True):
        cells = [tag("td", text(name), "name")]
        for count in row:
            share = count / max(sum(row), 1)
            style = f"background:rgba(43,108,176,{0.75 * share:.2f})"
            style += ";color:#fff" if share > 0.6 else ""
            cells.append(f'<td class="number" style="{style}">{count:,}</td>')
        lines.append(line(cells))
    note = tag("p", "A row has the true label, a column what the model said.", "quiet")
    return title + note + tag("table", "".join(lines), "narrow")


def _classes(split: str, scores: Mapping[str, Any]) -> str:
    kind = "per_class" if "per_class" in scores else "per_type"
    classes = scores.get(kind) or {}
    if not classes:
        return ""
    heads = list(dict.fromkeys(key for of_class in classes.values() for key in of_class))
    rows = [[name, *(of_class.get(key) for key in heads)] for name, of_class in classes.items()]
    title = "Classes" if kind == "per_class" else "Types"
    return f"<h2>{title} ({split})</h2>{table([title.lower(), *heads], rows, 'narrow')}"


def _examples(split: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """What was got wrong, the surest first; of numbers, the farthest; else what was written."""
    numbered = ((_badness(row), -number, row) for number, row in enumerate(rows))
    worst = heapq.nlargest(WRONG, (entry for entry in numbered if entry[0] is not None))
    shown_rows, title, note = [row for *_, row in worst], "What it got wrong", "The farthest first"
    if not worst:
        shown_rows = [row for row in rows if "written" in row["predicted"]][:WRONG]
        title, note = "What it wrote", "The first"
    elif shown_rows[0].get("right") is False:
        note = "The surest errors first"
    if not shown_rows:
        return ""
    lines = [line(tag("th", name) for name in ("row", "given", "expected", "said", "how surely"))]
    for row in shown_rows:
        known = ("row", "expected", "predicted", "right", "certainty")
        inputs = {name: value for name, value in row.items() if name not in known}
        sure = row.get("certainty")
        cells = [
            tag("td", text(row["row"]), "number"),
            tag("td", _fields(inputs), "said"),
            tag("td", _fields(row["expected"])),
            tag("td", _fields(_labels_of(row["predicted"]))),
            tag("td", "" if sure is None else f"{sure:.1%}", "number"),
        ]
        lines.append(line(cells))
    file = f'<a href="{predictions_file(Path(), split)}">predictions_{split}.jsonl</a>'
    shown_all = tag("p", f"{note}, at most {WRONG}; {file} has all rows.", "quiet")
    return f"<h2>{title} ({split})</h2>{shown_all}{tag('table', ''.join(lines))}"


def _badness(row: Mapping[str, Any]) -> float | None:
    """How wrong a row is; None for one that is right, or of no such question."""
    if row.get("right") is False:
        return row.get("certainty") or 0.0
    value, label = row["predicted"].get("value"), row.get("expected", {}).get("label")
    if "right" not in row and value is not None and isinstance(label, int | float):
        return abs(value - label)
    return None


def _labels_of(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """What a prediction says, without the numbers that it is said by."""
    return {name: value for name, value in prediction.items() if name in LABELS}


def _fields(values: Mapping[str, Any]) -> str:
    if len(values) == 1:
        return text(_short(*next(iter(values.items()))))
    pairs = (
        f'<span class="quiet">{text(k)}</span> {text(_short(k, v))}' for k, v in values.items()
    )
    return "<br>".join(pairs)


def _short(name: str, value: Any) -> str:
    if isinstance(value, list):
        value = (" " if name in SPACED else ", ").join(map(str, islice(value, 60)))
    shown = str(value)
    return shown if len(shown) <= 400 else f"{shown[:400]} …"


def _links(workdir: Path) -> str:
    files = [(name, what) for name, what in LINKS if (workdir / name).exists()]
    files += [
        (file.name, f"every row of {split} and what was said of it")
        for split in SPLITS
        if (file := predictions_file(workdir, split)).exists()
    ]
    drawn = [f"splits/{split}.jsonl" for split in SPLITS]
    files += [(name, "rows that were drawn") for name in drawn if (workdir / name).exists()]
    if (workdir / REST).exists():
        files.append((str(REST), "numbers of the rows that were left to train on"))
    items = (tag("li", f'<a href="{name}">{name}</a>: {what}') for name, what in files)
    return f"<h2>Beside this page</h2>{tag('ul', ''.join(items))}"
