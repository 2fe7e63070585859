"""From a configuration to encoded splits, and the shapes of their batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ftjax.data.encode import Examples, encode, encoder
from ftjax.data.loading import Vary
from ftjax.data.planning import Layout, bucket_layout, packed_layout, paired_layout
from ftjax.data.preparation import steps
from ftjax.data.preparation.pipeline import Report, prepare
from ftjax.data.sources import Split, is_stream, load, open_parts
from ftjax.data.streaming import Source, Windows
from ftjax.errors import UserError, require
from ftjax.formats.folder import load_tokenizer
from ftjax.parallel.mesh import batch_ways
from ftjax.tasks.base import Task

TOGETHER = 8  # packed batches of tasks in which tokens count
NAMED = 20  # rows that were left out, in the report


@dataclass(frozen=True)
class Data:
    """Encoded splits.

    Attributes:
        raw: name → rows.
        splits: name → their examples, with what is to be found.
        names: of the labels.
        report: rows in and out of every preparation step, and truncated texts.
        stream: rows to train on, where they are read while training.
    """

    raw: dict[str, Split]
    splits: dict[str, Examples]
    names: tuple[str, ...]
    report: Report
    stream: Windows | None = None


def read_splits(
    config: ConfigDict, task: Task, held_out: bool = False
) -> tuple[dict[str, Split], Report]:
    """Prepared splits of the configured source, and how many rows each step left.

    Args:
        config: of the run.
        task: whose rows they are.
        held_out: only held-out splits are asked for.
    """
    from ftjax.training import preparation  # whose models are placed as those here are

    raw = load(config.data, task.schema)
    report = [_read(name, split) for name, split in raw.items()]
    prepared, after = prepare(raw, config.data, preparation, held_out)
    return prepared, report + after


def _read(name: str, split: Split) -> dict[str, Any]:
    kept = len(split.rows)
    counts = {"rows_in": kept + len(split.skipped), "rows_out": kept}
    named = [{"reason": message} for message in split.skipped[:NAMED]]
    return {"step": "read", "split": name, **counts, **({"examples": named} if named else {})}


def read_labelled(
    config: ConfigDict, task: Task
) -> tuple[dict[str, Split], tuple[str, ...], Report]:
    """Prepared splits with one to train on, the labels' names, and what the steps dropped.

    The labels of a stream are those of the validation split.
    """
    raw, report = read_splits(config, task)
    stream = is_stream(config.data)
    if not stream and "train" not in raw:
        raise UserError(f"data.path={config.data.path!r} has no training split")
    if type(task).label_names is Task.label_names:  # there are none
        return raw, (), report
    named = raw.get("validation" if stream else "train")
    require(named, "the labels of a stream are those of a validation split; there is none")
    return raw, task.label_names(named), report


def read_data(config: ConfigDict, task: Task, folder: Path) -> Data:
    """Reads, checks, prepares and encodes all splits."""
    raw, names, report = read_labelled(config, task)
    splits = {name: encode_split(config, task, raw[name], names, folder) for name in raw}
    for name, examples in splits.items():
        counts = {"rows_in": len(raw[name].rows), "rows_out": len(raw[name].rows)}
        made = {"examples_made": len(examples), "cut": examples.truncated}
        report.append({"step": "encode", "split": name, **counts, **made})
    stream = open_stream(config, task, names, folder) if is_stream(config.data) else None
    return Data(raw, splits, names, report, stream)


def encode_split(
    config: ConfigDict, task: Task, split: Split, names: tuple[str, ...], folder: Path
) -> Examples:
    """A split's examples and, where it has answers, their targets.

    Raises:
        UserError: none of its rows gives an example.
    """
    examples = encode(split, task, folder, config.data.max_length)
    require(len(examples), f"{split.file}: no row gives an example of {config.task.name}")
    return with_targets(examples, task, split, names)


def variation(task: Task, folder: Path) -> Vary | None:
    """What makes of a split's examples those of an epoch, where there is anything to vary."""
    if type(task).variation is Task.variation:
        return None
    return task.variation(load_tokenizer(folder))


def with_targets(examples: Examples, task: Task, split: Split, names: tuple[str, ...]) -> Examples:
    """The examples of a split with their targets, where it has answers."""
    fields = task.schema.fields
    answers = [name for name in task.schema.answers if not fields[name].optional]
    return task.targets(examples, split, names) if split.has(answers) else examples


def open_stream(config: ConfigDict, task: Task, names: tuple[str, ...], folder: Path) -> Windows:
    """The rows to train on, read while training."""
    settings, sources = config.data, []
    for weight, part in open_parts(settings):
        if "train" not in part:
            raise UserError(f"{next(iter(part.values())).file}: there is no training split")
        skip = settings.on_error == "skip"
        prepared = steps(settings.prepare)
        sources.append(Source(part["train"], task.schema, weight, skip, prepared))

    encoded = encoder(task, folder, settings.max_length)

    def targeted(split: Split) -> Examples:
        found = encoded(split)
        return with_targets(found, task, split, names) if len(found) else found

    return Windows(sources, settings.window, targeted)


def choose_layout(
    config: ConfigDict,
    mesh: Mesh,
    parts: Sequence[Examples],
    batch_size: int,
    vary: Vary | None = None,
    longest: int = 0,
    by_token: bool = False,
) -> Layout:
    """The shapes of batches for examples like these, by `data.batching`.

    Args:
        config: of the run.
        mesh: that packed rows divide over.
        parts: examples, before `vary`.
        batch_size: of them.
        vary: what makes those of an epoch.
        longest: tokens that an example may have, where there will be more of them.
        by_token: whether packed batches may have more or fewer examples.
    """
    if vary is not None:  # lengths before and after, since those of another epoch may differ
        parts = [*parts, *(vary(part, np.random.default_rng(0)) for part in parts)]
    lengths = np.concatenate([part.lengths for part in parts])
    lengths = np.append(lengths, longest) if longest else lengths
    settings = config.data
    if settings.batching == "pack":
        multiple = batch_ways(mesh) * config.train.accumulation
        together = TOGETHER if by_token else 1
        size = (batch_size, multiple, settings.buckets, together)
        return packed_layout(lengths, *size, settings.pack_length)
    buckets = settings.buckets
    if settings.batching == "pad":
        lengths, buckets = np.array([settings.max_length]), 1
    layout = bucket_layout(lengths, buckets)
    pairs = [part for part in parts if part.decoder is not None]
    if not pairs:
        return layout
    return paired_layout(
        layout,
        np.concatenate([part.lengths for part in pairs]),
        np.concatenate([part.decoder.lengths for part in pairs]),
    )
