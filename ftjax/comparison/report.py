"""The report of a comparison: a table and three plots, as Markdown and as one HTML file."""

import base64
import html
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ftjax.comparison.statistics import wilson
from ftjax.training.records import write_text

HEADINGS = (
    "method",
    "trainable parameters",
    "share",
    "test accuracy [95% interval]",
    "rate",
    "seconds",
    "tokens/s",
    "peak memory",
)


@dataclass(frozen=True)
class Row:
    """One method, over its seeds.

    Attributes:
        trainable: parameters that train.
        total: parameters in all.
        accuracy: mean on the test split.
        low, high: Wilson's 95% interval for the test split's size.
        deviation: standard deviation over seeds, 0 for one.
        rate: peak learning rate.
        seconds: of the training phase, without compilation and evaluation, mean.
        tokens_per_second: real tokens, mean.
        memory: peak bytes of the process, largest.
        results: each seed's result.json.
    """

    method: str
    trainable: int
    total: int
    accuracy: float
    low: float
    high: float
    deviation: float
    rate: float
    seconds: float
    tokens_per_second: float
    memory: int
    results: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        spread = f" ± {self.deviation:.3f}" if len(self.results) > 1 else ""
        return (
            self.method,
            f"{self.trainable:,}",
            f"{self.trainable / self.total:.2%}",
            f"{self.accuracy:.3f}{spread} [{self.low:.3f}, {self.high:.3f}]",
            f"{self.rate:g}" if self.trainable else "",
            f"{self.seconds:.1f}",
            f"{self.tokens_per_second:,.0f}",
            f"{self.memory / 2**20:,.0f} MiB",
        )


def summarize(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Results of runs → a row a method, in the order they were run."""
    rows = []
    for method in dict.fromkeys(result["method"] for result in results):
        runs = [dict(result) for result in results if result["method"] == method]
        split = "test" if "test" in runs[0]["metrics"] else "validation"
        scores = [run["metrics"][split]["accuracy"] for run in runs]
        accuracy = statistics.fmean(scores)
        low, high = wilson(accuracy, runs[0]["metrics"][split]["examples"])
        rows.append(
            Row(
                method=method,
                trainable=runs[0]["trainable_params"],
                total=runs[0]["total_params"],
                accuracy=accuracy,
                low=low,
                high=high,
                deviation=statistics.stdev(scores) if len(scores) > 1 else 0.0,
                rate=runs[0]["learning_rate"],
                seconds=statistics.fmean(run["train_seconds"] for run in runs),
                tokens_per_second=statistics.fmean(run["tokens_per_second"] for run in runs),
                memory=max(run["peak_memory_bytes"] for run in runs),
                results=runs,
            )
        )
    return rows


def markdown_table(rows: Sequence[Row]) -> str:
    """The table, its columns aligned."""
    cells = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADINGS))]
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


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know to read the table."""
    run = rows[0].results[0]
    split = "test" if "test" in run["metrics"] else "validation"
    count = run["metrics"][split]["examples"]
    found = [
        f"Model `{run['model']}`, task {run['task']}, data `{run['data']}`, "
        f"{len(rows[0].results)} seed(s), {count:,} {split} examples.",
        f"Accuracy is that of the {split} split, run once on the checkpoint with the best "
        "validation metric; the interval is Wilson's, for the size of the split.",
        "Seconds are of the training phase, without compilation and evaluation; tokens are real "
        "ones, without padding; memory is the peak of the whole process.",
    ]
    cached = [row.method for row in rows if row.results[0].get("cached_frozen")]
    if cached:
        found.append(
            f"{', '.join(cached)}: the frozen backbone was run once, without dropout, and its "
            "outputs trained on; tokens count each pass over the data."
        )
    found += [
        f"{row.method}: nothing is trained; the template chosen on validation is "
        f"“{row.results[0]['template']}”, and seconds are those of choosing it."
        for row in rows
        if "template" in row.results[0]
    ]
    return found


def grid_table(tried: Mapping[str, Mapping[float, float]]) -> list[str]:
    """Lines that say what each learning rate of a grid came to on validation."""
    if not tried:
        return []
    lines = ["## Learning rates", ""]
    lines += ["Validation metric of each rate with the first seed; the best was kept.", ""]
    for method, found in tried.items():
        each = ", ".join(f"{rate:g}: {value:.3f}" for rate, value in found.items())
        lines.append(f"- {method}: {each}")
    return [*lines, ""]


def write_report(
    folder: Path,
    rows: Sequence[Row],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    tried: Mapping[str, Mapping[float, float]] = MappingProxyType({}),
) -> None:
    """Writes report.md, report.html and the plots.

    Args:
        folder: of the study.
        rows: one a method.
        curves: rows of metrics.jsonl of each method's first seed.
        tried: validation metric of the learning rates that were tried for a method.
    """
    plots = draw(rows, curves)
    for name, image in plots.items():
        path = folder / f"{name}.png"
        path.write_bytes(image)
    text = ["# Comparison of fine-tuning methods", "", markdown_table(rows), ""]
    text += [f"- {note}" for note in notes(rows)]
    text += ["", *(f"![{name.replace('_', ' ')}]({name}.png)" for name in plots), ""]
    text += grid_table(tried)
    write_text(folder / "report.md", "\n".join(text))
    write_text(folder / "report.html", _html(rows, plots))


def draw(
    rows: Sequence[Row], curves: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, bytes]:
    """PNG images by name: learning curves, accuracy by parameters and by time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wheel = plt.get_cmap("tab10" if len(rows) <= 10 else "nipy_spectral", max(len(rows), 10))
    colours = {row.method: wheel(i) for i, row in enumerate(rows)}
    marks = {row.method: "osD^vP*X"[i % 8] for i, row in enumerate(rows)}
    legend = {"fontsize": 8 if len(rows) <= 12 else 6, "bbox_to_anchor": (1, 0.5)}
    legend |= {"loc": "center left", "ncols": 1 + len(rows) // 20}
    images = {}

    def finish(name: str, figure: Any) -> None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
        plt.close(figure)
        images[name] = buffer.getvalue()

    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    for method, found in curves.items():
        colour = colours[method]
        losses = [(r["step"], r["loss"]) for r in found if "loss" in r]
        scores = [
            (r["step"], r["validation/accuracy"]) for r in found if "validation/accuracy" in r
        ]
        if losses:
            axes[0].plot(*zip(*losses, strict=True), color=colour, label=method)
        if scores:
            axes[1].plot(*zip(*scores, strict=True), "o-", color=colour, label=method, ms=4)
    for row in rows:
        if not curves.get(row.method):
            score = row.results[0]["metrics"]["validation"]["accuracy"]
            axes[1].axhline(score, color=colours[row.method], ls="--", label=row.method)
    for axis, title in zip(axes, ("training loss", "validation accuracy"), strict=True):
        axis.set(xlabel="step", title=title)
        axis.grid(alpha=0.3)
    axes[1].legend(**legend)
    finish("learning_curves", figure)

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    panels = (
        ("trainable parameters", lambda row: row.trainable),
        ("seconds of training", lambda row: row.seconds),
    )
    for axis, (label, value) in zip(axes, panels, strict=True):
        for row in rows:
            error = [[row.accuracy - row.low], [row.high - row.accuracy]]
            style = {
                "color": colours[row.method],
                "fmt": marks[row.method],
                "capsize": 3,
                "label": row.method,
            }
            axis.errorbar(value(row), row.accuracy, yerr=error, **style)
        axis.set(xlabel=label, title=f"test accuracy by {label}")
        axis.grid(alpha=0.3)
    axes[0].set_xscale("symlog", linthresh=100)  # logarithmic, with a place for none
    axes[0].set_xlim(-30, 5 * max(row.total for row in rows))
    axes[1].set_xlim(left=0)
    axes[1].legend(**legend)
    finish("accuracy", figure)
    return images


def _html(rows: Sequence[Row], plots: Mapping[str, bytes]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    images = "\n".join(
        f'<img alt="{name.replace("_", " ")}" '
        f'src="data:image/png;base64,{base64.b64encode(image).decode()}">'
        for name, image in plots.items()
    )
    table = "\n".join([row(HEADINGS, "th"), *(row(r.cells(), "td") for r in rows)])
    remarks = "\n".join(f"<li>{html.escape(note)}</li>" for note in notes(rows))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Comparison of fine-tuning methods</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 68em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ border-bottom: 1px solid #ddd; padding: .35em .8em; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
img {{ max-width: 100%; display: block; margin: 1em 0 }}
</style></head><body>
<h1>Comparison of fine-tuning methods</h1>
<table>
{table}
</table>
<ul>
{remarks}
</ul>
{images}
</body></html>
"""
