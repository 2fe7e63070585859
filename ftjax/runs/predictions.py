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
    predictions = task.predictions(outputs, examples, split, names)
    for number, text in texts.items():
        predictions[number] |= text.row()
    rows = judged(task.schema.answers, predictions, examples, split)
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
    answers: Sequence[str],
    predictions: Sequence[Mapping[str, Any]],
    examples: Examples,
    split: Split,
) -> Iterator[dict[str, Any]]:
    """Rows with what was expected, what was said, whether that is right and how sure it was.

    Args:
        answers: fields that say what is expected.
        predictions: a prediction a row of the split.
        examples: of it.
        split: the rows; "row" is their number in the file they are of.
    """
    targets = examples.arrays.get("labels") if len(examples) == len(predictions) else None
    for number, (row, prediction) in enumerate(zip(split.rows, predictions, strict=True)):
        expected = {name: row.pop(name) for name in answers if name in row}
        prediction = {name: value for name, value in prediction.items() if name not in DROPPED}
        target = None if targets is None else targets[number]
        verdict = {"right": right(expected, prediction, target), "certainty": certainty(prediction)}
        verdict = {name: value for name, value in verdict.items() if value is not None}
        number = {"row": row.pop("row")}
        yield {**number, **row, "expected": expected, "predicted": prediction, **verdict}


def right(expected: Mapping[str, Any], prediction: Mapping[str, Any], target: Any) -> bool | None:
    """Whether a prediction is what was expected; None where that is no question of yes or no."""
    if "preferred" in prediction:
        return prediction["preferred"] == "chosen"
    if "choice" in prediction:
        return None if target is None else bool(prediction["choice"] == target)
    if "answers" in expected:
        pair = (prediction["answer"], expected["answers"]["text"])
        return any(squad.exact(*pair, language) for language in squad.LANGUAGES)
    pairs = [(key, key) for key in ("label", "tags") if key in prediction and key in expected]
    if pairs:
        return all(prediction[a] == expected[b] for a, b in pairs)
    if "labels" in prediction and "label" in expected:
        return set(prediction["labels"]) == set(expected["label"])
    return None


def certainty(prediction: Mapping[str, Any]) -> float | None:
    """How sure a prediction is: the probability of what it says, of its least sure part."""
    if "probability" in prediction:
        return prediction["probability"]
    chances = prediction.get("probabilities", prediction.get("above"))
    if not chances or "tags" in prediction:
        return None
    if "choice" in prediction:
        return chances[prediction["choice"]]
    if prediction.get("label") in chances and "probabilities" in prediction:
        return chances[prediction["label"]]
    return round(min(float(np.maximum(p, 1 - p)) for p in chances.values()), 6)
