"""The part of a text that answers a question; long texts are read in windows."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal
from unicodedata import combining

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import log_softmax, softmax

from ftjax.data.encode import Columns, Examples
from ftjax.data.fields import Field, Row, Schema, identity, shown, text
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.options import Natural, Positive
from ftjax.tasks import squad
from ftjax.tasks.base import NONE, Apply, Array, Batch, Task, directions

CANDIDATES = 20  # starts, and ends, that are tried of each window
METRICS = ("exact_match", "f1")


def answers(value: Any) -> dict[str, list]:
    """{"text": [...], "answer_start": [...]}, as many of each; both empty for no answer."""
    try:
        texts, starts = list(value["text"]), [int(start) for start in value["answer_start"]]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"must have text and answer_start, not {shown(value)}") from None
    if len(texts) != len(starts) or not all(isinstance(answer, str) and answer for answer in texts):
        raise ValueError(f"must have texts, and a start of each, not {shown(value)}")
    return {"text": texts, "answer_start": starts}


def check(row: Row) -> None:
    answers = row["answers"]
    for answer, start in zip(answers["text"], answers["answer_start"], strict=True):
        there = row["context"][start : start + len(answer)] if start >= 0 else ""
        if there != answer:
            name = f"id {row['id']}: " if "id" in row else ""
            raise ValueError(
                f"{name}answer {shown(answer)} is not in the context at answer_start={start}"
                + (f", where {shown(there)} is" if there else "")
            )


@dataclass(frozen=True)
class SpanQA(Task):
    """Softmax over tokens for the start and for the end (Devlin et al. 2019, section 4.2).

    A text that is longer than `data.max_length` is read in windows; the answer is the best of all
    of them. A window without the answer is trained to point at its first token.

    Attributes:
        stride: tokens that a window shares with the one before.
        max_answer: tokens of an answer, at most.
        impossible: whether a question may have no answer (SQuAD 2.0).
        null_threshold: no answer is given where its score less that of the best one is above, as by
            `--null_score_diff_threshold` of SQuAD's scripts: the higher, the more answers.
        language: of the metrics: "en" as of SQuAD's script, "zh" as of CMRC 2018's.
    """

    stride: Natural = 64
    max_answer: Positive = 30
    impossible: bool = False
    null_threshold: float = 0.0
    language: Literal[tuple(squad.LANGUAGES)] = "en"

    best_metric = "f1"
    encoded_by: ClassVar = ("stride",)
    better: ClassVar = directions(
        f"{name}{among}" for name in METRICS for among in ("", "_answerable", "_unanswerable")
    )
    packs = False
    schema: ClassVar = Schema(
        {
            "id": Field(identity, optional=True, unique=True),
            "question": Field(text),
            "context": Field(text),
            "answers": Field(answers, answer=True),
        },
        check,
    )
    arrays: ClassVar = {
        "starts_at": Array("example", "int32"),
        "ends_at": Array("example", "int32"),
    }

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        return {"head": "span"}

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """With "_begin" and "_end", each token's characters in the context, -1 outside it."""
        room = max_length - self.stride - tokenizer.num_special_tokens_to_add(pair=True) - 1
        room = min(room, max_length // 2)
        if room < 1:
            raise UserError(
                f"task.stride={self.stride} leaves no room for questions in "
                f"data.max_length={max_length}"
            )
        tokenized = tokenizer(columns["question"], add_special_tokens=False, verbose=False)
        questions = [
            text if len(ids) <= room else tokenizer.decode(ids[:room])
            for text, ids in zip(columns["question"], tokenized["input_ids"], strict=True)
        ]
        tokenized = tokenizer(
            questions,
            columns["context"],
            truncation="only_second",
            max_length=max_length,
            stride=self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows = tokenized["overflow_to_sample_mapping"]
        begin, end = [], []
        for number, offsets in enumerate(tokenized["offset_mapping"]):
            inside = np.array([part == 1 for part in tokenized.sequence_ids(number)])
            spans = np.reshape(offsets, (len(offsets), 2))
            starts, ends = np.where(inside[:, None], spans, -1).T.tolist()
            begin.append(starts)
            end.append(ends)
        encoded = {
            name: tokenized[name] for name in ("input_ids", "token_type_ids") if name in tokenized
        }
        characters = {"_begin": begin, "_end": end}
        return {**encoded, **characters, "row": rows, "cut": [False] * len(rows)}

    def targets(self, examples: Examples, split: Split, names: Sequence[str]) -> Examples:
        """The first and the last token of each row's first answer, 0 where a window lacks it.

        Raises:
            UserError: a row has no answer, and `task.impossible` is false.
        """
        answers = split.column("answers")
        lacking = [not answer["text"] for answer in answers]
        if any(lacking) and not self.impossible:
            raise UserError(
                f"{split.file}: row {split.column('row')[lacking.index(True)]} has no answer; "
                "set task.impossible=true where questions need not have one"
            )
        rows, begin, end = examples.row_numbers, examples.tokens["_begin"], examples.tokens["_end"]
        starts, ends = np.zeros((2, len(examples)), np.int32)
        for number, (first, last) in enumerate(pairwise(examples.ids.offsets)):
            answer, own = answers[rows[number]], np.flatnonzero(begin[first:last] >= 0)
            if not answer["text"] or not len(own):
                continue
            start = answer["answer_start"][0]
            stop = start + len(answer["text"][0])
            a, b = begin[first:last][own], end[first:last][own]
            if a[0] <= start and stop <= b[-1]:
                starts[number] = own[np.argmax(b > start)]
                ends[number] = own[len(a) - 1 - np.argmax((a < stop)[::-1])]
        return replace(examples, arrays={"starts_at": starts, "ends_at": ends})

    def loss(self, apply: Apply, batch: Batch, train: bool) -> Loss:
        """Σ of the means of both cross-entropies, and how many windows."""
        logits = jnp.where(batch["attention_mask"][..., None] > 0, apply(batch), NONE)
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(logits[..., i], batch[name])
            for i, name in enumerate(("starts_at", "ends_at"))
        ]
        return Loss(
            jnp.sum(sum(losses) / 2 * batch["weights"]),
            jnp.sum(batch["weights"]),
        )

    def outputs(self, apply: Apply, batch: Batch) -> dict[str, jax.Array]:
        return {"tokens": apply(batch)}

    def score(
        self,
        outputs: dict[str, np.ndarray],
        examples: Examples,
        split: Split,
        names: Sequence[str],
    ) -> dict[str, Any]:
        """Exact match and F1, in parts of 1, over questions, the best of a question's answers.

        Where questions need not have one, also of those that have one and of those that have none.
        """
        predicted = [best["answer"] for best in self._best(outputs["tokens"], examples, split)]
        references = [answer["text"] for answer in split.column("answers")]
        pairs = list(zip(predicted, references, strict=True))
        exact = np.array([squad.exact(*pair, self.language) for pair in pairs])
        f1 = np.array([squad.f1(*pair, self.language) for pair in pairs])
        scores = {
            "loss": self._loss(outputs["tokens"], examples),
            "exact_match": float(exact.mean()),
            "f1": float(f1.mean()),
        }
        if self.impossible:
            is_answerable = np.array([bool(texts) for texts in references])
            for name, among in (("answerable", is_answerable), ("unanswerable", ~is_answerable)):
                if among.any():
                    scores[f"exact_match_{name}"] = float(exact[among].mean())
                    scores[f"f1_{name}"] = float(f1[among].mean())
        return {**scores, "examples": len(predicted)}

    def measured(self, split: Split, names: Sequence[str]) -> Collection[str]:
        every = [bool(answer["text"]) for answer in split.column("answers")] * self.impossible
        kinds = {"_answerable": any(every), "_unanswerable": not all(every)}
        lacking = {f"{metric}{kind}" for metric in METRICS for kind in kinds if not kinds[kind]}
        return super().measured(split, names) - lacking

    def predictions(
        self,
        outputs: dict[str, np.ndarray],
        examples: Examples,
        split: Split,
        names: Sequence[str],
    ) -> list[dict[str, Any]]:
        """One {"answer", "start", "score", "probability"} a row.

        "start" is in characters, -1 for no answer; "score" the sum of both outputs, less that of no
        answer where there may be none; "probability" a softmax over the `CANDIDATES` best answers
        and no answer, as of SQuAD's n-best lists.
        """
        return self._best(outputs["tokens"], examples, split)

    def _best(self, logits: np.ndarray, examples: Examples, split: Split) -> list[dict[str, Any]]:
        """The best answer of each row, over its windows."""
        spans: list[dict[tuple[int, int], float]] = [{} for _ in split.rows]
        null = np.full(len(spans), np.inf)
        begin, end = examples.tokens["_begin"], examples.tokens["_end"]
        for row, (first, last) in zip(
            examples.row_numbers, pairwise(examples.ids.offsets), strict=True
        ):
            window = logits[first:last]
            null[row] = min(null[row], window[0].sum())
            own = begin[first:last] >= 0
            for start, stop, score in _best_spans(window, own, self.max_answer):
                place = int(begin[first + start]), int(end[first + stop])
                spans[row][place] = max(score, spans[row].get(place, score))
        return list(map(self._answer, split.column("context"), spans, null))

    def _answer(
        self, context: str, spans: dict[tuple[int, int], float], none: float
    ) -> dict[str, Any]:
        """What is said of a row by the scores of its spans of characters, and that of no answer."""
        best = sorted(spans.items(), key=lambda item: -item[1])[:CANDIDATES]
        best = best or [((0, 0), 2 * NONE)]
        (start, stop), score = best[0]
        empty = self.impossible and none - score > self.null_threshold
        chances = softmax([none] * self.impossible + [chance for _, chance in best])
        certainty = {
            "score": float(score - none if self.impossible else score),
            "probability": round(float(chances[int(self.impossible and not empty)]), 6),
        }
        if empty:
            return {"answer": "", "start": -1, **certainty}
        while stop < len(context) and combining(context[stop]):  # that tokenizers drop
            stop += 1
        start += len(context[start:stop]) - len(context[start:stop].lstrip())  # of " word"
        return {"answer": context[start:stop].rstrip(), "start": start, **certainty}

    def _loss(self, logits: np.ndarray, examples: Examples) -> float:
        total, offsets = 0.0, examples.ids.offsets
        pairs = np.stack([examples.arrays[name] for name in ("starts_at", "ends_at")], 1)
        for number, (start, end) in enumerate(pairs):
            chances = log_softmax(logits[offsets[number] : offsets[number + 1]], 0)
            total -= float(chances[start, 0] + chances[end, 1]) / 2
        return total / len(examples)


def _best_spans(logits: np.ndarray, own: np.ndarray, longest: int) -> list[tuple[int, int, float]]:
    """The first and last token of the best answers within a window, and sums of their outputs."""
    if not own.any():
        return []
    masked = np.where(own[:, None], logits, NONE)
    starts, ends = np.argsort(-masked, 0, kind="stable")[:CANDIDATES].T
    sums = masked[starts, 0][:, None] + masked[ends, 1]
    length = ends - starts[:, None] + 1
    inside = (length >= 1) & (length <= longest) & own[starts][:, None] & own[ends]
    sums = np.where(inside, sums, -np.inf)
    order = np.argsort(-sums, axis=None, kind="stable")[: min(CANDIDATES, inside.sum())]
    best = np.transpose(np.unravel_index(order, sums.shape))
    return [(int(starts[i]), int(ends[j]), float(sums[i, j])) for i, j in best]
