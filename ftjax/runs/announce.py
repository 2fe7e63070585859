"""What a run says of itself."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ftjax.config.unused_keys import unused_keys
from ftjax.html import percent
from ftjax.setup.diagnostics import of_data
from ftjax.setup.model import Run
from ftjax.setup.splits import Data
from ftjax.tasks.base import spoken
from ftjax.training.learning_rate import rate_notes
from ftjax.training.progress import Best
from ftjax.training.recipe import Recipe

SEEN = 50  # rows by which an order is told


def announced(run: Run, data: Data, total: int, lengths: Sequence[int], step: int) -> Iterator[str]:
    """Lines on what trains, for how long, and on rows that do not come as they are.

    Args:
        run: the model in place.
        data: its splits.
        total: steps of the run.
        lengths: that rows are padded to.
        step: that it goes on at.
    """
    config, stream = run.config, data.stream
    trainable, every = run.tuned.partition.counts(run.tuned.shapes)
    if stream is None:
        size = f"{len(data.splits['train']):,} examples"
    else:
        size = f"a stream in windows of {stream.size:,} rows"
    yield (
        f"{config.method.name}: {trainable:,} of {every:,} parameters train "
        f"({percent(trainable / every)}); {size}, {total:,} steps, "
        f"lengths {', '.join(map(str, lengths))}"
    )
    yield from rate_notes(config, run.tuned)
    for warning in unused_keys(config):
        yield f"warning: {warning}"
    if config.train.early_stopping and "validation" not in data.splits:
        yield "warning: train.early_stopping is by validation, and there is no such split"
    if run.absent:
        yield f"not in {run.folder.name}, initialized: {', '.join(run.absent)}"
    for name, examples in data.splits.items():
        if skipped := data.raw[name].skipped:
            yield f"{name}: {len(skipped)} bad rows are left out, as {skipped[0]}"
        if examples.truncated:
            yield (
                f"{name}: {examples.truncated} of {len(examples)} examples are longer than "
                f"data.max_length={config.data.max_length} tokens and were truncated"
            )
        empty = len(data.raw[name].rows) - len(np.unique(examples.row_numbers))
        if empty and not config.task.get("block"):  # which rows share
            yield (
                f"{name}: {empty} rows give no example: nothing to be learned is within "
                f"data.max_length={config.data.max_length} tokens"
            )
    if stream is not None and are_sorted(stream[0].arrays.get("labels")):
        yield (
            "stream: the first window's rows come sorted by label, so that windows are of few "
            "labels: shuffle the files, or set data.buffer to more rows than come of one label"
        )
    for row in data.report:
        if row["step"] == "prompt" and row["cut"]:
            yield (
                f"{row['split']}: {row['cut']} of {row['rows_out']} prompts to write for are "
                f"longer than data.max_length={config.data.max_length} tokens, or than the model "
                "has room for, and are cut"
            )
    for doubt in of_data(data.names, data.report):
        yield f"warning: {doubt}"
    if step:
        yield f"resumed at step {step}"


def are_sorted(labels: np.ndarray | None) -> bool:
    """Whether rows have one label, or the next row's label is another half as often as it would
    be in a random order."""
    if labels is None or labels.ndim != 1 or labels.dtype.kind != "i" or len(labels) < SEEN:
        return False
    _, counts = np.unique(labels, return_counts=True)
    changes = (labels[1:] != labels[:-1]).sum()
    others = 1 - ((counts / len(labels)) ** 2).sum()  # of two rows, that they have two labels
    return len(counts) == 1 or bool(changes < 0.5 * others * (len(labels) - 1))


def stopped_at(number: int, step: int) -> str:
    """What is said of a run that a signal has stopped."""
    name = signal.Signals(number).name
    return f"stopped by {name} at step {step}: saved; run the same command to go on"


def validated(metric: str, scores: Mapping[str, Any], step: int) -> str:
    """What is said of a validation."""
    numbers = {spoken(name, scores): scores[name] for name in (metric, "loss")}
    listed = ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())
    return f"step {step}: validation {listed}"


def best_of(metric: str, best: Best) -> str:
    """What is said of the best step so far."""
    name = spoken(metric, best.metrics)
    return f"best validation {name} {best.score:.4f} at step {best.step}"


def extended(recipe: Recipe, before: int, step: int) -> str:
    """What is said of a run that was of `before` steps and goes on at `step` to a later end."""
    name, rate = recipe.config.optimizer.schedule, float(recipe.rate(step))
    return (
        f"extended from {before:,} to {recipe.total:,} steps: the learning rate goes on at "
        f"{rate:.3g}, that of step {step:,} of a {name} schedule over all of them"
    )
