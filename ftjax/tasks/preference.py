"""Preference tuning: the better of two answers is made more probable, as against a reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.data import chats
from ftjax.data.chat_tokens import Chat, encode_chats
from ftjax.data.chats import Message
from ftjax.data.encode import Columns, Examples
from ftjax.data.fields import Field, Row, Schema, shown
from ftjax.data.sources import Split
from ftjax.loss import Loss
from ftjax.options import Above0
from ftjax.tasks.base import Apply, Array, Batch, Task, directions
from ftjax.tasks.causal_lm import with_targets
from ftjax.tasks.instruction import TOOLS, tools_of

ANSWERS = ("chosen", "rejected")
KINDS = ("sigmoid", "hinge", "ipo")


def turns(value: Any) -> list[Message]:
    """A text as a turn of nobody yet, or of what humans and assistants say; or a list of turns."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty")
        return chats.transcript(value) or [{"role": "", "content": value}]
    return chats.messages(value)


def conversation(row: Mapping[str, Any], answer: str) -> list[Message]:
    """The turns of a row up to one of its answers, which may have those before it in itself."""
    prompt, reply = (map(chats.whole, row.get(name) or ()) for name in ("prompt", answer))
    before = [{**turn, "role": turn["role"] or "user"} for turn in prompt]
    after = [{**turn, "role": turn["role"] or "assistant"} for turn in reply]
    return after if after[: len(before)] == before and len(after) > len(before) else before + after


def _chat(pair: tuple[Row, str]) -> Chat:
    row, answer = pair
    return conversation(row, answer), tools_of(row)


def check(row: Row) -> None:
    for answer in ANSWERS:
        messages = conversation(row, answer)
        if messages[-1]["role"] != "assistant":
            raise ValueError(f"{answer} must end with a turn of the assistant")
        if len(messages) < 2:
            content = shown(messages[0].get("content"))
            raise ValueError(f"there is no prompt before {answer}: {content}")
    first, second = (conversation(row, answer)[:-1] for answer in ANSWERS)
    if first != second:
        raise ValueError("chosen and rejected answer different turns: only their last may differ")


@dataclass(frozen=True)
class Preference(Task):
    """Direct preference optimization (Rafailov et al. 2023).

    With Δ = log π(chosen) − log π(rejected), summed over tokens of the answers, and Δ₀ that of the
    model before training, without what the method adds unless it is `model.adapter`:
    −log σ(β(Δ − Δ₀)) (eq. 7). "hinge" is max(0, 1 − β(Δ − Δ₀)) (Zhao et al. 2023), "ipo"
    (Δ̄ − Δ̄₀ − 1 / 2β)² of means over tokens (Azar et al. 2024).

    The reference is computed once before training, so that no second copy of the model is held,
    whatever trains.

    Attributes:
        beta: β.
        kind: "sigmoid", "hinge" or "ipo".
        label_smoothing: ε: the share of rows whose answers are taken to be exchanged (Mitchell
            2023), of "sigmoid".
        template: as of `instruction`.
    """

    beta: Above0 = 0.1
    kind: Literal[tuple(KINDS)] = "sigmoid"
    label_smoothing: Annotated[float, "[0, 0.5)"] = 0.0
    template: str = ""

    packs = False
    group = 2
    refers = True
    best_metric = "accuracy"
    encoded_by: ClassVar = ("template",)
    better: ClassVar = directions(("accuracy", "margin"))
    schema: ClassVar = Schema(
        {
            "prompt": Field(turns, optional=True, says=True),
            **{name: Field(turns, says=True) for name in ANSWERS},
            "tools": TOOLS,
        },
        check,
    )
    arrays: ClassVar = {
        "learned": Array("token", "int32"),
        "reference": Array("example", "float32", (2,)),
    }

    def head(self, names: Sequence[str], folder: Path | None) -> dict[str, Any]:
        return {"head": "causal_lm"}

    def encode(self, tokenizer: Any, columns: Columns, max_length: int) -> dict[str, list]:
        """Two sequences a row, with "learned", 1 at the answers' tokens; see `fitted_pair`."""
        examples: dict[str, list] = {"input_ids": [], "learned": [], "cut": []}
        rows = [{n: x[i] for n, x in columns.items()} for i in range(len(columns["chosen"]))]
        numbered = [(i, (row, answer)) for i, row in enumerate(rows) for answer in ANSWERS]
        every = [
            (chat.ids, chat.learned)
            for chat in encode_chats(tokenizer, numbered, _chat, self.template, "last")
        ]
        for pairs in zip(every[::2], every[1::2], strict=True):
            parts = fitted_pair([learned for _, learned in pairs], max_length)
            cut = [
                (ids[part], marks[part]) for (ids, marks), part in zip(pairs, parts, strict=True)
            ]
            examples["input_ids"].append([ids for ids, _ in cut])
            examples["learned"].append([marks.tolist() for _, marks in cut])
            examples["cut"].append(any(len(ids) > max_length for ids, _ in pairs))
        return examples

    def log_probabilities(self, apply: Apply, batch: Batch) -> jax.Array:
        """Of the two answers of each row: (rows, 2)."""
        rows, group, length = batch["input_ids"].shape
        names = ("input_ids", "attention_mask", "learned")
        flat = with_targets({name: batch[name].reshape(-1, length) for name in names})
        weights = flat.pop("target_weights")
        sums = (apply(flat) * weights).sum(-1)
        if self.kind == "ipo":
            sums = sums / jnp.maximum(weights.sum(-1), 1)
        return sums.reshape(rows, group)

    def losses(self, policy: jax.Array, reference: jax.Array) -> jax.Array:
        """Of log-probabilities (rows, 2)."""
        gain = (policy - reference) @ jnp.array([1.0, -1.0])
        if self.kind == "ipo":
            return (gain - 1 / (2 * self.beta)) ** 2
        if self.kind == "hinge":
            return jax.nn.relu(1 - self.beta * gain)
        right, wrong = (-jax.nn.log_sigmoid(sign * self.beta * gain) for sign in (1, -1))
        return (1 - self.label_smoothing) * right + self.label_smoothing * wrong

    def loss(self, apply: Apply, batch: Batch, train: bool) -> Loss:
        """Σ weighted losses and Σ weights."""
        losses = self.losses(self.log_probabilities(apply, batch), batch["reference"])
        return Loss(jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"]))

    def outputs(self, apply: Apply, batch: Batch) -> jax.Array:
        """Log-probabilities (rows, 2)."""
        return self.log_probabilities(apply, batch)

    def score(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> dict[str, Any]:
        """Mean loss; how often the chosen answer gains more than the rejected one ("accuracy"), and
        by how much, β(Δ − Δ₀) ("margin")."""
        reference, margin = examples.arrays["reference"], self._margins(outputs, examples)
        return {
            "loss": float(self.losses(jnp.asarray(outputs), jnp.asarray(reference)).mean()),
            "accuracy": float((margin > 0).mean()),
            "margin": float(margin.mean()),
            "examples": len(outputs),
        }

    def _margins(self, outputs: np.ndarray, examples: Examples) -> np.ndarray:
        """β(Δ − Δ₀) of each row."""
        return self.beta * ((outputs - examples.arrays["reference"]) @ np.array([1.0, -1.0]))

    def predictions(
        self, outputs: np.ndarray, examples: Examples, split: Split, names: Sequence[str]
    ) -> list[dict[str, Any]]:
        """One {"preferred", "probability", "margin", "log_probabilities"} a row.

        The answer that gains more on the reference is preferred, as it is scored; how surely is
        σ(|margin|), by the model of Bradley and Terry that the loss is of.
        """
        margins = self._margins(outputs, examples)
        return [
            {
                "preferred": ANSWERS[0 if margin > 0 else 1],
                "probability": round(float(1 / (1 + np.exp(-abs(margin)))), 6),
                "margin": round(float(margin), 6),
                "log_probabilities": [round(float(x), 6) for x in row],
            }
            for row, margin in zip(outputs, margins, strict=True)
        ]


def fitted_pair(learned: Sequence[np.ndarray], max_length: int) -> list[slice]:
    """The part of each of two sequences that is read, so that the same of a prompt is before both.

    Prompts lose their starts, down to half of `max_length`; answers then lose their ends.

    Args:
        learned: of each, 1 at the answer's tokens.
        max_length: in tokens.
    """
    starts = [int(np.argmax(marks > 0)) if marks.any() else len(marks) for marks in learned]
    longest = max(len(marks) - start for marks, start in zip(learned, starts, strict=True))
    room = max(max_length - longest, max_length // 2)
    first = [max(start - room, 0) for start in starts]
    return [slice(start, start + max_length) for start in first]
