"""What a run's best model says of each held-out row, beside what was expected."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ftjax.data.encode import Examples
from ftjax.data.sources import Split
from ftjax.files import to_line, write_text
from ftjax.generation.text import Text
from ftjax.setup.splits import Data
from ftjax.tasks import squad
from ftjax.tasks.base import Task

REST = Path("splits/train_rows.txt")  # of a work folder
DROPPED = ("embedding",)  # of predictions: large, and nothing to read


def predictions_file(workdir: Path, split: str) -> Path:
    return workdir / f"predictions_{split}.jsonl"


def write_predictions(
    workdir: Path,
    name: str,
    task: Task,
    outputs: Any,
    examples: Examples,
    split: Split,
    names: Sequence[str],
    texts: Mapping[int, Text] = MappingProxyType({}),
) -> None:
    """Writes predictions_{name}.jsonl: a line a row, see `judged`.

    Args:
        workdir: the work folder.
        name: of the split.
        task: that says what outputs mean.
        outputs: see `Task.score`.
        examples: that they are of.
        split: the rows.
        names: of labels.
        texts: what was written, by index of the row, where the task writes.
    """
    said = task.predictions(outputs, examples, split, names)
    for number, text in texts.items():
        said[number] |= text.said()
    rows = judged(task.schema.answers, said, examples, split)
    write_text(predictions_file(workdir, name), "".join(map(to_line, rows)))


def write_drawn(workdir: Path, data: Data) -> None:
    """Writes the held-out splits that were drawn from others into splits/, to be looked at.

    Of the rows that this left to train on there may be many: only their numbers are written, in
    order, each as often as preparation made rows of it.
    """
    read = {row["split"] for row in data.report if row["step"] == "read"}
    drawn = data.raw.keys() - read
    for name in drawn:
        rows = "".join(map(to_line, data.raw[name].rows))
        write_text(workdir / "splits" / f"{name}.jsonl", rows)
    if drawn and data.stream is None:
        numbers = sorted(data.raw["train"].rows["row"])
        write_text(workdir / REST, "".join(f"{number}\n" for number in numbers))


def judged(
    answers: Sequence[str], said: Sequence[Mapping[str, Any]], examples: Examples, split: Split
) -> Iterator[dict[str, Any]]:
    """Rows with what was expected, what was said, whether that is right and how sure it was.

    Args:
        answers: fields that say what is expected.
        said: a prediction a row of the split.
        examples: of it.
        split: the rows; "row" is their number in the file they are of.
    """
    targets = examples.arrays.get("labels") if len(examples) == len(said) else None
    for number, (row, answer) in enumerate(zip(split.rows, said, strict=True)):
        expected = {name: row.pop(name) for name in answers if name in row}
        answer = {name: value for name, value in answer.items() if name not in DROPPED}
        target = None if targets is None else targets[number]
        verdict = {"right": right(expected, answer, target), "certainty": certainty(answer)}
        verdict = {name: value for name, value in verdict.items() if value is not None}
        number = {"row": row.pop("row")}
        yield {**number, **row, "expected": expected, "predicted": answer, **verdict}


def right(expected: Mapping[str, Any], said: Mapping[str, Any], target: Any) -> bool | None:
    """Whether a prediction is what was expected; None where that is no question of yes or no."""
    if "preferred" in said:
        return said["preferred"] == "chosen"
    if "choice" in said:
        return None if target is None else bool(said["choice"] == target)
    if "answers" in expected:
        pair = (said["answer"], expected["answers"]["text"])
        return any(squad.exact(*pair, language) for language in squad.LANGUAGES)
    pairs = [(key, key) for key in ("label", "tags") if key in said and key in expected]
    if pairs:
        return all(said[a] == expected[b] for a, b in pairs)
    if "labels" in said and "label" in expected:
        return set(said["labels"]) == set(expected["label"])
    return None


def certainty(said: Mapping[str, Any]) -> float | None:
    """How sure a prediction is: the probability of what it says, of its least sure part."""
    if "probability" in said:
        return said["probability"]
    chances = said.get("probabilities", said.get("above"))
    if not chances or "tags" in said:
        return None
    if "choice" in said:
        return chances[said["choice"]]
    if said.get("label") in chances and "probabilities" in said:
        return chances[said["label"]]
    return round(min(float(np.maximum(p, 1 - p)) for p in chances.values()), 6)
