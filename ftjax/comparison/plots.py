"""The plots of a comparison, legible for three methods and for forty."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ftjax.comparison.row import Row, interval_of
from ftjax.training.progress import gain

PANEL = 8  # learning curves that share a panel


def draw(
    rows: Sequence[Row], curves: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, bytes]:
    """PNG images by name.

    Args:
        rows: one a method.
        curves: rows of metrics.jsonl by method.
    """
    import matplotlib

    matplotlib.use("Agg")
    return {rows[0].metric: _scores(rows), "learning_curves": _curves(rows, curves)}


def _png(figure: Any) -> bytes:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def _scores(rows: Sequence[Row]) -> bytes:
    """Methods from best to worst: score with its interval, parameters, time, memory."""
    import matplotlib.pyplot as plt

    metric = rows[0].spoken_metric
    ranked = sorted(rows, key=lambda row: gain(row.score, row.better))
    height = 1.2 + 0.24 * len(rows)
    figure, axes = plt.subplots(
        1, 4, figsize=(12, height), sharey=True, width_ratios=(3, 2, 1.5, 1.5), layout="constrained"
    )
    positions = range(len(ranked))
    scores = [row.score for row in ranked]
    error = [
        [row.score - row.low for row in ranked],
        [row.high - row.score for row in ranked],
    ]
    axes[0].errorbar(scores, positions, xerr=error, fmt="o", ms=5, capsize=3)
    for position, row in zip(positions, ranked, strict=True):
        axes[0].plot(row.seeds, [position] * len(row.seeds), "|", color="black", ms=7)
    axes[0].set(title=f"{rows[0].split} {metric}; | a run\n95% interval of {interval_of(rows[0])}")
    axes[0].set_yticks(positions, [row.method for row in ranked])
    axes[0].set_ylim(-0.7, len(rows) - 0.3)
    axes[1].plot([row.trainable for row in ranked], positions, "o", color="tab:orange")
    axes[1].set(title="trainable parameters")
    axes[1].set_xscale("symlog", linthresh=100)  # logarithmic, with a place for none
    axes[1].set_xlim(-30, 5 * max(row.total for row in rows))
    axes[2].barh(positions, [row.seconds for row in ranked], color="tab:green")
    axes[2].set(title="seconds of training")
    axes[3].barh(positions, [row.memory / 2**20 for row in ranked], color="tab:red")
    axes[3].set(title="peak memory, MiB")
    for axis in axes:
        axis.grid(alpha=0.3)
    return _png(figure)


def _curves(rows: Sequence[Row], curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Loss and validation metric, a few methods a row; the others in grey behind them."""
    import matplotlib.pyplot as plt

    metric = rows[0].metric
    groups = [rows[i : i + PANEL] for i in range(0, len(rows), PANEL)]
    figure, grid = plt.subplots(
        len(groups),
        2,
        figsize=(12, 3.4 * len(groups)),
        sharex="col",
        sharey="col",
        squeeze=False,
        layout="constrained",
    )
    for axes, group in zip(grid, groups, strict=True):
        shown = {row.method: f"C{i}" for i, row in enumerate(group)}
        for axis, key, style in zip(
            axes, ("loss", f"validation/{metric}"), ("-", "o-"), strict=True
        ):
            for row in sorted(rows, key=lambda row: row.method in shown):
                drawn = [r for r in curves.get(row.method, ()) if r.get(key) is not None]
                points = [(r["step"], r[key]) for r in drawn]
                colour, own = shown.get(row.method, "0.88"), row.method in shown
                label = row.method if own else None
                if points:
                    axis.plot(
                        *zip(*points, strict=True), style, color=colour, label=label, ms=3, lw=1.3
                    )
                elif own and key != "loss":  # nothing was trained
                    score = row.results[0]["metrics"]["validation"][metric]
                    axis.axhline(score, color=colour, ls="--", label=label)
            axis.grid(alpha=0.3)
        axes[1].legend(fontsize=8, bbox_to_anchor=(1, 0.5), loc="center left")
    for axis, title in zip(
        grid[0], ("training loss", f"validation {rows[0].spoken_metric}"), strict=True
    ):
        axis.set(title=title)
    for axis in grid[-1]:
        axis.set(xlabel="step")
    return _png(figure)
