"""A tag for each word: named entities, slots; with one label for all words where rows have it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import log_softmax, softmax

from ftjax.data.encode import Columns, Examples
from ftjax.data.fields import Field, Row, Schema, label_name, same_length, words
from ftjax.data.fields import tags as read_tags
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.tasks.base import (
    Apply,
    Array,
    Batch,
    Task,
    directions,
    label_names,
    named_outputs,
    of_places,
    one_number,
)
from ftjax.tasks.schemes import (
    NAMES,
    check_tags,
    entities,
    scheme_of,
    strictly,
)
from ftjax.tasks.spans import first_tokens

MEANS = ("f1", "precision", "recall")
INTENT = "intent: "  # before the names of labels of all words


def check(row: Row, scheme: str = "auto") -> None:
    same_length(row, "tokens", "tags")
    check_tags(row["tags"], scheme)


@dataclass(frozen=True)
class TokenClassification(Task):
    """Softmax over tags at the first token of each word, cross-entropy.

    Where rows have a label besides (an intent, as of snips), it is read off the mean of further
    outputs over all tokens of the row, and a row's loss is the sum of both (Chen et al. 2019, who
    read it off the first token).

    Attributes:
        labels: the tags in order; empty: those of the training split.
        scheme: of the tags: "IOB1", "IOB2" (BIO), "IOE1", "IOE2", "BIOES", "BILOU", or "none", as
            for parts of speech. "auto": by the tags' prefixes, of which IOB1 and IOE1 cannot be
            told from IOB2 and IOE2. Entities are scored as seqeval does strictly; BIO by "auto" as
            conlleval does, which published figures are of. Without a scheme F1, precision and
            recall are means over tags.
    """

    labels: tuple[str, ...] = ()
    scheme: Literal[tuple(NAMES)] = "auto"

    best_metric = "f1"
    encoded_by: ClassVar = ()
    better: ClassVar = directions((*MEANS, "accuracy", "intent_accuracy", "exact"))
    schema: ClassVar = Schema(
        {
            "tokens": Field(words),
            "tags": Field(read_tags, answer=True),
            "label": Field(label_name, answer=True, optional=True),
        },
        check,
    )
    arrays: ClassVar = {"tags": Array("token", "int32"), "tagged": Array("token", "int32")}

    def __post_init__(self) -> None:
        super().__post_init__()
        sound = partial(check, scheme=self.scheme)
        object.__setattr__(self, "schema", replace(type(self).schema, check=sound))

    def label_names(self, train: Split, outputs: Sequence[str] = ()) -> tuple[str, ...]:
        """A finished head's; else tags, "O" first, then by type; then labels, after `INTENT`."""
        used = {tag for tags in train.column("tags") for tag in tags}
        scheme = scheme_of(used) if self.scheme == "auto" else self.scheme
        check_together(train.file, used, scheme)
        intents = train.column("label") if "label" in train.rows.column_names else []
        if outputs:
            every = used | {f"{INTENT}{name}" for name in intents}
            return named_outputs(train, every, () if intents else self.labels, outputs)
        used |= set() if scheme == "none" else {"O"}
        by_type = (lambda tag: (tag != "O", tag)) if scheme == "none" else _by_type
        names = self.labels or tuple(sorted(used, key=by_type))
        if strange := sorted(used - set(names)):
            raise UserError(f"{train.file}: tag {strange[0]!r} is not among task.labels")
        labels = label_names(train, intents, ()) if intents else ()
        return (*names, *(f"{INTENT}{name}" for name in labels))

    def _scheme(self, tags: Sequence[str]) -> str:
        """The scheme by which entities are counted; "auto" for BIO as conlleval has it."""
        scheme = scheme_of(tags) if self.scheme == "auto" else self.scheme
        return "auto" if scheme == "IOB2" and self.scheme == "auto" else scheme

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        return {"head": "tokens", "labels": len(names)}

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """With "_word", see `first_tokens`."""
        return first_tokens(columns["tokens"], tokenizer, max_length)

    def targets(self, examples: Examples, split: Split, names: Sequence[str]) -> Examples:
        """Words with a tag that training does not have count in metrics, not in the loss."""
        tags, intents = parted(names)
        number = {tag: i for i, tag in enumerate(tags)}
        numbers = [[number.get(tag, len(tags)) for tag in row] for row in split.column("tags")]
        word, sizes = examples.tokens["_word"], examples.ids.lengths
        ends = np.cumsum([0, *map(len, numbers)])
        at = np.repeat(ends[:-1], sizes) + word - 1  # of the row's words among all words
        all_tags = np.concatenate([np.array(row, np.int32) for row in numbers])
        known = (word > 0) & (all_tags[at] < len(tags))
        tokens = {"tags": np.where(known, all_tags[at], 0), "tagged": known.astype(np.int32)}
        arrays = {}
        if intents and "label" in split.rows.column_names:
            arrays["labels"] = np.eye(len(intents), dtype=np.float32)[one_number(split, intents)]
        return replace(
            examples,
            tokens={**examples.tokens, **tokens},
            arrays={**examples.arrays, **arrays},
        )

    def loss(self, apply: Apply, batch: Batch, train: bool) -> Loss:
        """Σ cross-entropies of words, and how many; with labels Σ of rows' losses, and how many."""
        logits, tagged = apply(batch), batch["tagged"].astype(jnp.float32)
        if "labels" not in batch:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["tags"])
            return Loss(jnp.sum(losses * tagged), jnp.sum(tagged))
        count = logits.shape[-1] - batch["labels"].shape[-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[..., :count], batch["tags"])
        own = of_places(batch)
        words = jnp.maximum(jnp.einsum("rpt,rt->rp", own, tagged), 1)
        tags = jnp.einsum("rpt,rt->rp", own, losses * tagged) / words
        intents = (own @ logits[..., count:]) / jnp.maximum(own.sum(-1, keepdims=True), 1)
        losses = optax.softmax_cross_entropy(intents, batch["labels"].reshape(intents.shape))
        weights = batch["weights"].reshape(losses.shape)
        return Loss(jnp.sum((losses + tags) * weights), jnp.sum(weights))

    def outputs(self, apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        return {"tokens": apply(batch)}

    def score(
        self,
        outputs: dict[str, np.ndarray],
        examples: Examples,
        split: Split,
        names: Sequence[str],
    ) -> dict[str, Any]:
        """Precision, recall and F1 of entities by seqeval, or of tags; accuracy of words.

        Words that were cut off count, as "O", or as no tag where there is no "O". With labels also
        their accuracy, and the share of rows whose label and tags are all right ("exact").
        """
        tags, _ = parted(names)
        truth, (guess, _) = split.column("tags"), self._tags(outputs, examples, split, tags)
        pairs = list(zip(chain(*truth), chain(*guess), strict=True))
        scheme = self._scheme(tags)
        means = _of_tags(pairs, tags) if scheme == "none" else _of_entities(truth, guess, scheme)
        metrics = {
            "loss": self._loss(outputs["tokens"], examples, len(tags)),
            "accuracy": sum(a == b for a, b in pairs) / len(pairs),
            "examples": len(truth),
            "averages": dict.fromkeys(MEANS, "macro" if scheme == "none" else "micro"),
            **means,
        }
        if "labels" in examples.arrays:
            intents = self._intents(outputs, examples, tags).argmax(1)
            right = intents == examples.arrays["labels"].argmax(1)
            exact = [a == b for a, b in zip(truth, guess, strict=True)]
            metrics["intent_accuracy"] = float(right.mean())
            metrics["exact"] = float((right & exact).mean())
        return metrics

    def constant(self, examples: Examples, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The most frequent tag, and the most frequent label of all words."""
        tags, _ = parted(names)
        tagged = examples.tokens["tagged"] > 0
        counts = np.bincount(examples.tokens["tags"][tagged], minlength=len(tags))
        chosen = np.zeros(len(names), np.float32)
        chosen[counts.argmax()] = 1
        if "labels" in examples.arrays:
            chosen[len(tags) + examples.arrays["labels"].sum(0).argmax()] = 1
        return {"tokens": np.tile(chosen, (len(tagged), 1))}

    def measured(self, split: Split, names: Sequence[str]) -> Collection[str]:
        both = parted(names)[1] and "label" in split.rows.column_names
        return super().measured(split, names) - (set() if both else {"intent_accuracy", "exact"})

    def predictions(
        self,
        outputs: dict[str, np.ndarray],
        examples: Examples,
        split: Split,
        names: Sequence[str],
    ) -> list[dict[str, Any]]:
        """One {"tags", "probabilities", "entities"} a row.

        Probabilities are of each word's tag, null where it was cut off. Entities have "type",
        "start" and "end" in words, the end not included, "text", and as "probability" the mean of
        their words'. With labels also "label" and its "probability".
        """
        tags, intents = parted(names)
        rows = []
        every = zip(
            split.column("tokens"), *self._tags(outputs, examples, split, tags), strict=True
        )
        for row, guess, sure in every:
            spans = [
                {
                    "type": kind,
                    "start": start,
                    "end": end,
                    "text": " ".join(row[start:end]),
                    "probability": round(float(np.mean(sure[start:end])), 6),
                }
                for kind, start, end in entities(guess, self._scheme(tags))
            ]
            rows.append({"tags": guess, "probabilities": sure, "entities": spans})
        if intents:
            for row, chances in zip(rows, self._intents(outputs, examples, tags), strict=True):
                row["label"] = intents[chances.argmax()]
                row["probability"] = round(float(chances.max()), 6)
        return rows

    def _tags(
        self,
        outputs: dict[str, np.ndarray],
        examples: Examples,
        split: Split,
        tags: Sequence[str],
    ) -> tuple[list[list[str]], list[list[float | None]]]:
        """The tag found for each word of each row, and its probability."""
        chances = softmax(outputs["tokens"][:, : len(tags)], 1)
        best, most = chances.argmax(1), chances.max(1)
        offsets, word = examples.ids.offsets, examples.tokens["_word"]
        outside = "O" if "O" in tags else ""
        sizes = [len(words) for words in split.column("tokens")]
        guess, sure = [[outside] * n for n in sizes], [[None] * n for n in sizes]
        for row, chance, start, end in zip(guess, sure, offsets[:-1], offsets[1:], strict=True):
            for at in start + np.flatnonzero(word[start:end]):
                row[word[at] - 1] = tags[best[at]]
                chance[word[at] - 1] = round(float(most[at]), 6)
        return guess, sure

    def _intents(
        self, outputs: dict[str, np.ndarray], examples: Examples, tags: Sequence[str]
    ) -> np.ndarray:
        """Probabilities of each row's labels."""
        sums = np.add.reduceat(outputs["tokens"][:, len(tags) :], examples.ids.offsets[:-1])
        return softmax(sums / examples.ids.lengths[:, None], 1)

    def _loss(self, logits: np.ndarray, examples: Examples, count: int) -> float:
        """The mean that `loss` has, of the first `count` outputs and the rest."""
        tagged, starts = examples.tokens["tagged"], examples.ids.offsets[:-1]
        chances = log_softmax(logits[:, :count], 1)
        losses = -tagged * np.take_along_axis(chances, examples.tokens["tags"][:, None], 1)[:, 0]
        if "labels" not in examples.arrays:
            return float(losses.sum() / max(tagged.sum(), 1))
        tags = np.add.reduceat(losses, starts) / np.maximum(np.add.reduceat(tagged, starts), 1)
        means = np.add.reduceat(logits[:, count:], starts) / examples.ids.lengths[:, None]
        intents = -(log_softmax(means, 1) * examples.arrays["labels"]).sum(1)
        return float((tags + intents).mean())


def parted(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The tags, and the labels of all words."""
    tags = [name for name in names if not name.startswith(INTENT)]
    return tags, [name.removeprefix(INTENT) for name in names[len(tags) :]]


def _by_type(tag: str) -> tuple[bool, str, str]:
    return tag != "O", tag[2:], tag


def check_together(file: str, tags: Collection[str], scheme: str) -> None:
    """Raises UserError where some tags are of a scheme and others of none."""
    for tag in sorted(tags - {"O"}) if scheme != "none" else ():
        if tag[1:2] != "-":
            raise UserError(
                f"{file}: tag {tag!r} is not of the scheme {scheme}, which others are of; "
                "task.scheme names others"
            )


def _of_entities(truth: list[list[str]], guess: list[list[str]], scheme: str) -> dict[str, Any]:
    """Precision, recall and F1 of entities, and of those of each type."""
    from seqeval import metrics as sq

    how = {"zero_division": 0, **strictly(scheme)}
    if not any(entities(row, scheme) for row in chain(truth, guess)):  # means of nothing
        return {"f1": 0.0, "precision": 0.0, "recall": 0.0, "per_type": {}}
    report = sq.classification_report(truth, guess, output_dict=True, **how)
    return {
        "f1": float(sq.f1_score(truth, guess, **how)),
        "precision": float(sq.precision_score(truth, guess, **how)),
        "recall": float(sq.recall_score(truth, guess, **how)),
        "per_type": {
            kind: {
                "precision": float(scores["precision"]),
                "recall": float(scores["recall"]),
                "f1": float(scores["f1-score"]),
                "entities": int(scores["support"]),
            }
            for kind, scores in report.items()
            if not kind.endswith(" avg")
        },
    }


def _of_tags(pairs: Sequence[tuple[str, str]], tags: Sequence[str]) -> dict[str, Any]:
    """Means of precision, recall and F1 over tags that words have or are given, and those of each
    tag, by scikit-learn."""
    from sklearn import metrics as sk

    truth, guess = zip(*pairs, strict=True)
    every = [tag for tag in dict.fromkeys((*tags, *truth, *guess)) if tag]  # not what was cut off
    scores = sk.precision_recall_fscore_support(truth, guess, labels=every, zero_division=0.0)
    there = np.isin(every, [*truth, *guess])
    precision, recall, f1, _ = (values[there].mean() for values in scores)
    names = ("precision", "recall", "f1", "words")
    return {
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "per_type": {
            tag: dict(zip(names, (*map(float, row[:3]), int(row[3])), strict=True))
            for tag, row in zip(every, zip(*scores, strict=True), strict=True)
        },
    }
