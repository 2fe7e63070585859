"""What makes a run's model useless without an error: each is said, with numbers."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ftjax.data.encode import Examples
from ftjax.data.sources import Split
from ftjax.tasks.base import LOWER, Task, spoken

UNKNOWN = 0.05  # share of tokens
ENDS = 4  # the first and the last of so many parts of a run are compared


def baseline(
    task: Task, examples: Examples, split: Split, names: Sequence[str]
) -> dict[str, float]:
    """Metrics of the best answer that is always the same; empty where a task has no such."""
    outputs = task.constant(examples, names)
    if outputs is None:
        return {}
    scores = task.score(outputs, examples, split, names)
    return {k: v for k, v in scores.items() if isinstance(v, float) and k != "loss"}


def unknown_tokens(examples: Examples, tokenizer: Any) -> int:
    """Tokens of examples that stand for what the tokenizer does not know."""
    unknown = tokenizer.unk_token_id
    usual = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    if unknown is None or unknown in usual:
        return 0
    ids = [part.values for part in (examples.ids, examples.decoder) if part is not None]
    return int(sum(np.count_nonzero(values == unknown) for values in ids))


def of_data(names: Sequence[str], report: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What to doubt before training.

    Args:
        names: of labels.
        report: see `ftjax.setup.splits.Data`.
    """
    for row in report:
        share = row.get("unknown_tokens", 0) / max(row.get("tokens", 0), 1)
        if share > UNKNOWN:
            yield (
                f"{share:.0%} of the tokens of {row['split']} are unknown to the model's tokenizer "
                f"({row['unknown_tokens']:,} of {row['tokens']:,}): it is of another language, or "
                "of other characters, than the rows"
            )
    alike = defaultdict(list)
    for name in names:
        alike["".join(name.split()).casefold()].append(name)
    for spellings in (spellings for spellings in alike.values() if len(spellings) > 1):
        yield (
            f"labels {' and '.join(map(repr, spellings))} differ in blanks or capitals alone, and "
            "are different labels: data.prepare=('clean_labels',) makes one of them"
        )


def of_training(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What to doubt of how the loss went, by the rows of metrics.jsonl."""
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    if len(losses) < 2:
        return
    part = max(1, len(losses) // ENDS)
    first, last = statistics.fmean(losses[:part]), statistics.fmean(losses[-part:])
    if last >= first:
        yield (
            f"the training loss did not fall: {first:.4g} at first, {last:.4g} at last; "
            "optimizer.learning_rate is too high or too low, or labels have nothing to do with "
            "texts"
        )


def of_result(
    split: str, scores: Mapping[str, Any], metric: str, better: str, names: Sequence[str]
) -> Iterator[str]:
    """What to doubt of a split's metrics.

    Args:
        split: its name.
        scores: its metrics, with "baseline".
        metric: that chose the best step.
        better: which way it is better.
        names: of labels, in the order of the confusion matrix.
    """
    if math.isnan(scores.get("loss", 0.0)):
        yield (
            f"the {split} loss is no number: what the model says is not finite, and no metric "
            "means anything; a lower optimizer.learning_rate, or model.dtype=float32, may help"
        )
    constant = scores.get("baseline", {}).get(metric)
    if constant is not None:
        value = scores[metric]
        worse = value >= constant if better == LOWER else value <= constant
        if worse or value != value:
            yield (
                f"{split} {spoken(metric, scores)} is {value:.4f}, no better than {constant:.4f}, "
                "that of an answer that is always the same: the model has learned nothing that "
                "counts"
            )
    counts = np.array(scores.get("confusion") or np.zeros((0, 0)), np.int64)
    predicted = counts.sum(0)
    if np.count_nonzero(counts.sum(-1)) > 1 and np.count_nonzero(predicted) == 1:
        yield (
            f"the model says {names[int(predicted.argmax())]!r} of all {predicted.sum():,} {split} "
            f"rows, which have {np.count_nonzero(counts.sum(-1))} labels"
        )
