"""From a split to its examples and their targets, and the shapes of their batches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ftjax.data.encode import Examples, encode
from ftjax.data.loading import Vary
from ftjax.data.packed_layout import packed_layout
from ftjax.data.planning import Layout, bucket_layout, paired_layout
from ftjax.data.sources import Split
from ftjax.errors import require
from ftjax.formats.folder import load_tokenizer
from ftjax.parallel.mesh import batch_ways
from ftjax.tasks.base import Task

TOGETHER = 8  # packed batches of tasks in which tokens count


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


def choose_layout(
    config: ConfigDict,
    mesh: Mesh,
    parts: Sequence[Examples],
    batch_size: int,
    vary: Vary | None = None,
    longest: tuple[int, int] | None = None,
    by_token: bool = False,
    inserted: int = 0,
) -> Layout:
    """The shapes of batches for examples like these, by `data.batching`.

    Args:
        config: of the run.
        mesh: that packed rows divide over.
        parts: examples, before `vary`, those to train on first: packed rows are filled by them.
        batch_size: of them.
        vary: what makes those of an epoch.
        longest: tokens that an example, and what it writes, may have, where there will be more of
            them; None: all are here.
        by_token: whether packed batches may have more or fewer examples.
        inserted: virtual tokens that each example grows by.
    """
    settings, first = config.data, [parts[0].lengths]
    if vary is not None:  # lengths before and after, since those of another epoch may differ
        varied = list(map(vary.shaped, parts))
        first, parts = [*first, varied[0].lengths], [*parts, *varied]
    lengths = np.concatenate([part.lengths for part in parts])
    lengths = np.append(lengths, longest[0]) if longest else lengths
    if settings.batching == "pack":
        multiple = batch_ways(mesh) * config.train.accumulation
        together = TOGETHER if by_token else 1
        size = (batch_size, multiple, settings.buckets, together, settings.pack_length)
        return packed_layout(np.concatenate(first), *size, int(lengths.max()), inserted)
    buckets = settings.buckets
    if settings.batching == "pad":
        lengths, buckets = np.array([settings.max_length]), 1
    layout = bucket_layout(lengths, buckets)
    pairs = [part for part in parts if part.decoder is not None]
    if not pairs:
        return layout
    read, written = (
        np.concatenate([*sizes, [] if longest is None else [most]]).astype(np.int64)
        for sizes, most in (
            ([part.lengths for part in pairs], longest and longest[0]),
            ([part.decoder.lengths for part in pairs], longest and longest[1]),
        )
    )
    return paired_layout(layout, read, written)
