"""What scripts/tasks.py draws of a data set, and what it calls close."""

import json
import math
from pathlib import Path

from scripts.tasks import close, sample


def written(folder: Path, **splits: list[str]) -> Path:
    for split, texts in splits.items():
        lines = [json.dumps({"text": text, "label": len(text) % 2}) + "\n" for text in texts]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def test_a_sample_trains_on_nothing_held_out_and_on_nothing_twice(tmp_path):
    train = [f"text {i}" for i in range(100)]
    given = {"validation": train[:20], "test": [" TEXT  30", "text 31", "text 31"]}
    found = sample(written(tmp_path, train=train + train, **given), 40)
    texts = {split: [row["text"] for row in rows] for split, rows in found.items()}
    assert texts["test"] == given["test"]
    assert len(texts["validation"]) == 10 and set(texts["validation"]) < set(train[:20])
    assert len(texts["train"]) == len(set(texts["train"])) == 40
    assert set(texts["train"]) <= set(train) - set(train[:20]) - {"text 30", "text 31"}
    assert sample(tmp_path, 40) == found


def test_a_sample_of_data_that_lacks_splits(tmp_path):
    train, held = [f"text {i}" for i in range(100)], ["one", "two"]
    found = sample(written(tmp_path, train=train, validation=held), 1000)
    texts = {split: [row["text"] for row in rows] for split, rows in found.items()}
    assert texts["test"] == held
    assert len(texts["validation"]) == 10
    assert sorted(texts["train"] + texts["validation"]) == sorted(train)


def test_a_sample_has_every_label_to_train_on(tmp_path):
    labels = ["often"] * 98 + ["rare", "rarer"]
    rows = [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]
    for split, part in {"train": rows, "validation": [], "test": rows[:1]}.items():
        lines = [json.dumps(row) + "\n" for row in part]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    found = sample(tmp_path, 10)["train"]
    assert {row["label"] for row in found} == set(labels)
    assert len({row["text"] for row in found}) == 10


def test_scores_are_close_by_a_point_or_by_two_standard_errors():
    assert close([0.800], [0.8099]) and not close([0.800], [0.8101])
    assert close([0.8, 0.8, 0.8], [0.809]) and not close([0.8, 0.8, 0.8], [0.811])
    ours = [0.78, 0.80, 0.82]  # standard deviation 0.02
    limit = 2 * 0.02 * math.sqrt(1 / 3 + 1)  # one run is taken to vary alike
    assert close(ours, [0.80 + limit - 1e-4]) and not close(ours, [0.80 + limit + 1e-4])
    assert close([0.80 + limit - 1e-4], ours) and not close([0.80 + limit + 1e-4], ours)
    limit = 2 * math.sqrt(0.02**2 / 3 + 0.03**2 / 2)
    for shift, within in ((-1e-4, True), (1e-4, False)):
        middle = 0.80 + limit + shift  # the standard deviation of two is their distance / sqrt(2)
        theirs = [middle - 0.03 / math.sqrt(2), middle + 0.03 / math.sqrt(2)]
        assert close(ours, theirs) is within
