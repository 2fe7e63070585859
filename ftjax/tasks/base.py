"""What every task says of itself."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data.encode import Columns, Examples
from ftjax.data.fields import Schema, in_order, is_integer, whole_label
from ftjax.data.loading import Vary
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.options import conform

Batch = Mapping[str, jax.Array]
HIGHER, LOWER = "higher", "lower"  # which way a metric is better
Apply = Callable[..., Any]  # the model: batch → outputs
NONE = -1e9  # an output of what is no answer; finite, so that differences stay defined
LEAST = 1e-6  # in place of a count or a share of 0, which has no logarithm


class Array(NamedTuple):
    """What an array of batches is, besides those that every batch has.

    Attributes:
        per: "example" or "token".
        dtype: numpy's name.
        more: sizes of further axes; of two labels, where it is one a label.
    """

    per: str
    dtype: str
    more: tuple[int, ...] = ()


class Task:
    """From rows to loss, predictions and metrics. Tasks are frozen dataclasses of their options.

    Attributes:
        schema: what rows must be.
        arrays: of batches for training, by name.
        best_metric: of validation, that chooses the best step.
        better: which way each metric is better; what only counts is none.
        at_end: metrics of what is written, which is slow: once, after training, unless one of them
            chooses.
        problem_type: that Hugging Face's config.json has for a classifier; None for other heads.
        packs: whether several examples can lie in a row.
        by_token: whether a token counts in the loss, rather than an example.
        caches: whether what the head reads can be kept, of a frozen backbone.
        writes: whether batches have second sequences.
        refers: whether `outputs` of the untrained model are an array "reference" of batches.
        group: sequences of an example, as far as that is known without data.
        encoded_by: options that `encode` reads; None: it may read any.
    """

    schema: ClassVar[Schema]
    arrays: ClassVar[Mapping[str, Array]] = {}
    best_metric: str = "loss"
    better: ClassVar[Mapping[str, str]] = {"loss": LOWER}
    at_end: ClassVar[Sequence[str]] = ()
    problem_type: ClassVar[str | None] = None
    packs: ClassVar[bool] = True
    by_token: ClassVar[bool] = False
    caches: ClassVar[bool] = False
    writes: ClassVar[bool] = False
    refers: ClassVar[bool] = False
    group: ClassVar[int] = 1
    encoded_by: ClassVar[Sequence[str] | None] = None

    def __post_init__(self) -> None:
        conform(self, "task.")

    def label_names(self, train: Split, outputs: Sequence[str] = ()) -> tuple[str, ...]:
        """Names of labels, in order.

        Args:
            train: a split with answers.
            outputs: what the outputs of a finished head are called; empty for a new one.

        Raises:
            UserError: bad ones, or others than a finished head has.
        """
        return ()

    def output_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """What each output of a classifier stands for."""
        return tuple(names)

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        """Arguments of the family's `Model`; `folder` is where the model is, if anywhere."""
        raise NotImplementedError

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """Examples of rows.

        Args:
            tokenizer: of `transformers`; a fast one, but for Marian's.
            columns: of the split.
            max_length: in tokens, special ones included.

        Returns:
            By name a list with an element an example: "input_ids", lists of token ids, or lists of
            such lists; "cut", whether it was longer; where rows do not each give one example,
            "row", which of the columns' rows it is of; "decoder_ids" for a second sequence. Other
            lists are of tokens, as "token_type_ids", other numbers of examples.
        """
        return cut_texts(tokenizer, columns, ("text", "text_pair"), max_length)

    @property
    def encoding(self) -> str:
        """What tells its tokens from others' of the same rows: what `encoded_by` names, where that
        is said of this `encode`, not of one that it replaces."""
        kinds = type(self).__mro__
        encoder, options = (
            next(number for number, kind in enumerate(kinds) if name in vars(kind))
            for name in ("encode", "encoded_by")
        )
        names = self.encoded_by if options <= encoder else None
        kind = f"{kinds[encoder].__module__}.{kinds[encoder].__qualname__}"
        return f"{kind} {self if names is None else [(n, getattr(self, n)) for n in names]}"

    def targets(self, examples: Examples, split: Split, names: Sequence[str]) -> Examples:
        """The examples of a split that has answers, with `arrays`.

        Raises:
            UserError: a row with an answer that training does not have.
        """
        return examples

    def fitted(self, examples: Examples, names: Sequence[str]) -> "Task":
        """The task as it is trained, where its loss depends on the examples to train on."""
        return self

    def first_bias(self, examples: Examples) -> Sequence[float] | None:
        """What the bias of a new head starts at, one an output; None: at zeros."""
        return None

    def variation(self, tokenizer: Any) -> Vary | None:
        """What makes of a split's examples those of an epoch; None: they are always the same."""
        return None

    def longest_written(self, max_length: int) -> int:
        """Tokens that a second sequence may have, of examples of at most `max_length`."""
        return max_length

    def loss(self, apply: Apply, batch: Batch, train: bool) -> Loss:
        """Σ of losses and Σ of weights; places without an example weigh nothing."""
        raise NotImplementedError

    def outputs(self, apply: Apply, batch: Batch) -> Any:
        """What is scored.

        Returns:
            An element a place, (rows, ...) or (rows, places, ...) packed; or of every token
            {"tokens": (rows, length, ...)}.
        """
        return apply(batch)

    def score(
        self, outputs: Any, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """Metrics, with "loss" and "examples", of outputs in the order of examples.

        "averages" says of means over labels what they are: "macro", "micro"; see `spoken`.

        Args:
            outputs: (examples, ...); or of tokens {"tokens": (tokens, ...)}.
            examples: with targets.
            split: that they are of.
            names: of labels.
        """
        raise NotImplementedError

    def constant(self, examples: Examples, names: Sequence[str]) -> Any | None:
        """Outputs of the best answer that is always the same; None where there is no such.

        Args:
            examples: with targets, which it is the best for.
            names: of labels.
        """
        return None

    def measured(self, split: Split, names: Sequence[str]) -> Collection[str]:
        """Of `better`, the metrics that `score` gives of a split."""
        return self.better.keys() - {*self.at_end}

    def predictions(
        self, outputs: Any, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """What is found, one a row of the split; arguments as of `score`."""
        raise NotImplementedError


def directions(higher: Iterable[str] = (), lower: Iterable[str] = ()) -> dict[str, str]:
    """`Task.better` of metrics by name, and of the loss."""
    return {"loss": LOWER, **dict.fromkeys(higher, HIGHER), **dict.fromkeys(lower, LOWER)}


def spoken(metric: str, metrics: Mapping[str, Any]) -> str:
    """A metric's name, with the average that it is: "macro f1"."""
    average = metrics.get("averages", {}).get(metric)
    return f"{average} {metric}" if average else metric


def smoothed(batch: Batch, share: float, train: bool) -> dict[str, Any]:
    """With the label smoothing of a language model's loss, in training alone."""
    return {**batch, "target_smoothing": share} if train and share else dict(batch)


def of_places(batch: Batch) -> jax.Array:
    """1 where a token is of a place's example: (rows, places, length), one place unpacked."""
    if "starts" not in batch:
        return batch["attention_mask"][:, None].astype(jnp.float32)
    number = 1 + jnp.arange(batch["starts"].shape[1])
    return (batch["segment_ids"][:, None] == number[:, None]).astype(jnp.float32)


def cut_texts(
    tokenizer: Any, columns: Columns, names: Sequence[str], max_length: int
) -> dict[str, list]:
    """Token ids of one text or two of each row, cut to length: see `Task.encode`."""
    texts = [columns[name] for name in names if name in columns]
    cut, long = cut_to(tokenizer, max_length, *texts)
    tokens = {"input_ids": cut["input_ids"], "cut": long}
    if len(texts) == 2 and "token_type_ids" in cut:
        tokens["token_type_ids"] = cut["token_type_ids"]
    return tokens


def cut_to(tokenizer: Any, max_length: int, *texts: Sequence[str]) -> tuple[Any, list[bool]]:
    """Texts or pairs tokenized and cut to length, and whether each was longer."""
    cut = tokenizer(*texts, truncation=True, max_length=max_length)
    if tokenizer.is_fast:
        return cut, were_cut(cut)
    whole = tokenizer(*texts, verbose=False)["input_ids"]  # Marian's does not say what it cut
    return cut, [len(ids) > max_length for ids in whole]


def were_cut(tokenized: Any) -> list[bool]:
    """Whether a fast tokenizer left out tokens of each text, or pair, of a batch."""
    return [bool(encoding.overflowing) for encoding in tokenized.encodings]


def label_names(
    train: Split, labels: Iterable[str], task_labels: Sequence[str], outputs: Sequence[str] = ()
) -> tuple[str, ...]:
    """Names of labels: a finished head's, or those given, or the split's, integers in order.

    Args:
        train: the split.
        labels: all that it has.
        task_labels: by the configuration.
        outputs: of a finished head.

    Raises:
        UserError: fewer than two labels; one without an example that the source does not name, or
            that the head lacks.
    """
    used = set(labels)
    if outputs:
        return named_outputs(train, used, task_labels, outputs)
    names = tuple(str(name) for name in (task_labels or train.label_names))
    if not names:
        names = in_order(used)
        if names and names[0] == "0" and all(map(is_integer, names)):
            gap = next((i for i, name in enumerate(names) if name != str(i)), None)
            names = names if gap is None else (*names[:gap], str(gap))
    # Those of a source are known.
    for name in names if task_labels or not train.label_names else ():
        if name not in used:
            raise UserError(
                f"{train.file}: label {name!r} has no example in the training split; "
                "leave it out of task.labels, or renumber the labels"
            )
    if len(names) < 2:
        raise UserError(f"{train.file}: classification needs two labels, found {list(names)}")
    return names


def named_outputs(
    train: Split, labels: Collection[str], task_labels: Sequence[str], outputs: Sequence[str]
) -> tuple[str, ...]:
    """A finished head's labels in the order of its outputs, as the split spells them.

    Capital letters do not count. Outputs that have no names, LABEL_0, ..., are those given, or
    what the split calls by their numbers.

    Raises:
        UserError: the head lacks a label of the split, or has others than those given.
    """
    unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(outputs))
    numbers = tuple(map(str, range(len(outputs))))
    spelled = {whole_label(name).casefold(): name for name in labels}
    names = tuple(
        name if name in labels else spelled.get(whole_label(name).casefold(), name)
        for name in outputs
    )
    if unnamed and len(task_labels) == len(outputs):
        names = tuple(map(str, task_labels))
    elif unnamed and set(labels) <= set(numbers):
        names = numbers
    listed = [str(name).casefold() for name in task_labels]
    same = not listed or listed == [name.casefold() for name in names]
    if set(labels) <= set(names) and same:
        return names
    option = f" (task.labels: {', '.join(map(str, task_labels))})" if task_labels else ""
    remedy = "name them in order in task.labels, or " * unnamed
    raise UserError(
        f"{train.file} has the labels {', '.join(in_order(labels))}{option}, and the head of "
        f"model.path {', '.join(outputs)}: {remedy}rename those of the rows (data.prepare: "
        "clean_labels, mapping), or set model.new_head=True to start a new head"
    )


def one_number(split: Split, names: Sequence[str], column: str = "label") -> np.ndarray:
    """The number of each row's one label (rows,); raises as `numbers`."""
    number = {name: i for i, name in enumerate(names)}
    labels = (number.get(label, -1) for label in split.values(column))
    placed = np.fromiter(labels, np.int32, len(split.rows))
    if (placed < 0).any():
        numbers(split, [[label] for label in split.values(column)], names)
    return placed


def numbers(split: Split, labels: Sequence[Sequence[str]], names: Sequence[str]) -> list[list[int]]:
    """Numbers of each row's labels.

    Raises:
        UserError: a row with a label that training does not have.
    """
    number = {name: i for i, name in enumerate(names)}
    for row_labels, row in zip(labels, split.column("row"), strict=True):
        for label in row_labels:
            if label not in number:
                raise UserError(
                    f"{split.file}: row {row} has label {label!r}, which training does not have "
                    f"(labels: {', '.join(names)})"
                )
    return [[number[label] for label in row_labels] for row_labels in labels]
