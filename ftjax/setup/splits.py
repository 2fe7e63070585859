"""From a configuration to checked, prepared and encoded splits."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ftjax.data.encode import Examples, encoder
from ftjax.data.preparation.cached import prepare_once
from ftjax.data.preparation.pipeline import Report, steps_of
from ftjax.data.preparation.step import Models
from ftjax.data.sources import Split, is_stream, load, open_parts
from ftjax.data.stream_source import Source
from ftjax.data.streaming import Windows
from ftjax.errors import UserError, require
from ftjax.formats.folder import load_tokenizer
from ftjax.parallel.agreement import require_same
from ftjax.setup.diagnostics import unknown_tokens
from ftjax.setup.examples import encode_split, with_targets
from ftjax.setup.labels import finished_outputs
from ftjax.tasks.base import Task

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

    @property
    def first(self) -> Examples:
        """What is trained on first: all, or a stream's first window."""
        return self.splits["train"] if self.stream is None else self.stream[0]

    @property
    def counted(self) -> Examples:
        """What labels are counted of: a stream's first window may have few of some, and the
        validation split, whose labels are the run's, stands for all."""
        held_out = self.splits.get("validation") if self.stream is not None else None
        return held_out or self.first

    @property
    def written(self) -> str | None:
        """The split that texts are written for at the end, of tasks that are scored by them."""
        return next((name for name in ("test", "validation") if name in self.raw), None)


def read_splits(
    config: ConfigDict, task: Task, models: Models, held_out: bool = False
) -> tuple[dict[str, Split], Report]:
    """Prepared splits of the configured source, and how many rows each step left.

    Args:
        config: of the run.
        task: whose rows they are.
        models: that steps of `data.prepare` ask.
        held_out: only held-out splits are asked for.
    """
    raw = load(config.data, task.schema)
    report = [_read_report(name, split) for name, split in raw.items()]
    prepared, after = prepare_once(raw, config.data, models, held_out)
    return prepared, report + after


def _read_report(name: str, split: Split) -> dict[str, Any]:
    count = len(split.rows)
    counts = {"rows_in": count + len(split.skipped), "rows_out": count}
    named = [{"reason": message} for message in split.skipped[:NAMED]]
    return {"step": "read", "split": name, **counts, **({"examples": named} if named else {})}


def read_labelled(
    config: ConfigDict, task: Task, models: Models, outputs: Sequence[str] = ()
) -> tuple[dict[str, Split], tuple[str, ...], Report]:
    """Prepared splits with one to train on, the labels' names, and what the steps dropped.

    The labels of a stream are those of the validation split.

    Args:
        config: of the run.
        task: whose rows they are.
        models: see `read_splits`.
        outputs: see `finished_outputs`.
    """
    raw, report = read_splits(config, task, models)
    stream = is_stream(config.data)
    if not stream and "train" not in raw:
        raise UserError(f"data.path={config.data.path!r} has no training split")
    if type(task).label_names is Task.label_names:  # there are none
        return raw, (), report
    named = raw.get("validation" if stream else "train")
    require(named, "the labels of a stream are those of a validation split; there is none")
    return raw, task.label_names(named, outputs), report


def read_data(config: ConfigDict, task: Task, folder: Path, models: Models) -> Data:
    """Reads, checks, prepares and encodes all splits; on all hosts the same."""
    outputs = finished_outputs(config, task, folder)
    raw, names, report = read_labelled(config, task, models, outputs)
    splits = {name: encode_split(config, task, raw[name], names, folder) for name in raw}
    tokenizer = load_tokenizer(folder)
    for name, examples in splits.items():
        counts = {"rows_in": len(raw[name].rows), "rows_out": len(raw[name].rows)}
        tokens = len(examples.ids.values)
        sizes = {"examples_made": len(examples), "cut": examples.truncated, "tokens": tokens}
        sizes["unknown_tokens"] = unknown_tokens(examples, tokenizer)
        report.append({"step": "encode", "split": name, **counts, **sizes})
    stream = open_stream(config, task, names, folder) if is_stream(config.data) else None
    data = Data(raw, splits, names, report, stream)
    require_same("the data, as it is prepared and encoded,", _content(data))
    return data


def _content(data: Data) -> Iterator[Any]:
    """All that a run is told of its data; of a stream the first window."""
    yield data.names
    first = [] if data.stream is None else [("stream", data.stream[0])]
    for name, examples in [*data.splits.items(), *first]:
        yield name
        yield from examples.content()


def open_stream(config: ConfigDict, task: Task, names: tuple[str, ...], folder: Path) -> Windows:
    """The rows to train on, read while training."""
    settings, sources = config.data, []
    for number, (weight, part) in enumerate(open_parts(settings)):
        if "train" not in part:
            raise UserError(f"{next(iter(part.values())).file}: there is no training split")
        skip = settings.on_error == "skip"
        prepared = steps_of(settings.prepare, task.schema)
        sources.append(
            Source(
                part["train"],
                task.schema,
                weight,
                skip,
                prepared,
                settings.buffer,
                (config.seed, number),
            )
        )

    encoded = encoder(task, folder, settings.max_length)

    def targeted(split: Split) -> Examples:
        examples = encoded(split)
        return with_targets(examples, task, split, names) if len(examples) else examples

    return Windows(sources, settings.window, targeted)
