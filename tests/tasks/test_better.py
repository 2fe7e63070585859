"""Which way each metric of each task is better: as right answers score, against wrong ones."""

import json
import math

import numpy as np
import pytest

from ftjax import registry, tasks
from ftjax.data.encode import Examples, ragged
from ftjax.errors import UserError
from ftjax.tasks.base import HIGHER, LOWER
from ftjax.training.progress import Progress, gain
from tests.conftest import ftjax, here
from tests.tasks.made import examples_of
from tests.tasks.test_span_qa import rows_of

LABELS = np.array([0, 1, 2, 1, 0, 2])
SIDES = np.eye(3, dtype=np.float32)[LABELS]
TOKENS = [np.tile([[0.1, 1.0, 1.0]], (6, 1)), np.tile([[3.0, 0.0, 1.0]], (6, 1))]
PAIR = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
PAIR /= np.linalg.norm(PAIR, axis=-1, keepdims=True)
# Task → arrays of examples, and outputs that are right and that are wrong
ANSWERS = {
    "classification": ({"labels": LABELS}, 9 * SIDES, -9 * SIDES),
    "relation": ({"labels": LABELS}, 9 * SIDES, -9 * SIDES),
    "multilabel": ({"labels": SIDES}, 9 * (SIDES - 0.5), 9 * (0.5 - SIDES)),
    "ordinal": (
        {"labels": LABELS},
        9 * ((LABELS[:, None] > np.arange(2)) - 0.5),
        9 * ((2 - LABELS[:, None] > np.arange(2)) - 0.5),
    ),
    "regression": ({"labels": LABELS}, LABELS[:, None] + 0.1, 2.0 - LABELS[:, None]),
    "multiple_choice": ({"labels": LABELS}, 9 * SIDES, -9 * SIDES),
    "contrastive": (
        {"_label": np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.1])},
        np.stack([PAIR, PAIR * np.array([9, 8, 7, 6, 5, 4])[:, None]], 1),
        np.stack([PAIR, -PAIR * np.array([9, 8, 7, 6, 5, 4])[:, None]], 1),
    ),
    "preference": ({"reference": np.zeros((6, 2))}, SIDES[:, :2] * 0 + [3, -3], [[-3.0, 3.0]] * 6),
    "next_sentence": ({}, *(np.hstack([each, each[:, :2]]) for each in TOKENS)),
}


def scores_of(name, folder):
    """Metrics of right answers and of wrong ones."""
    task = registry.find("task", tasks.TASKS, name)
    if name == "span_qa":
        task = task(impossible=True, stride=4)
        split, names, examples = examples_of(task, rows_of(8, 12, empty=0.5), folder)
        right = np.full((len(examples.ids.values), 2), -9.0)
        for i, at in enumerate(("starts_at", "ends_at")):
            right[examples.ids.offsets[:-1] + examples.arrays[at], i] = 9.0
        return [task.score({"tokens": x}, examples, split, names) for x in (right, -right)]
    if name == "token_classification":
        rows = [{"tokens": ["good", "film"], "tags": ["B-a", "O"], "label": "y"}]
        rows += [{"tokens": ["bad", "plot"], "tags": ["O", "B-a"], "label": "n"}]
        split, names, examples = examples_of(task(), rows, folder)
        tags = 9 * np.eye(2)[examples.tokens["tags"]] - 4.5
        labels = np.repeat(examples.arrays["labels"], examples.ids.lengths, 0) * 9 - 4.5
        right = np.hstack([tags, labels])
        return [task().score({"tokens": x}, examples, split, names) for x in (right, -right)]
    arrays, *both = ANSWERS.get(name, ({}, *TOKENS))
    examples = Examples(ragged([[1]] * 6), arrays=arrays)
    names = ("a(e1,e2)", "b(e1,e2)", "c(e1,e2)")
    return [task().score(np.asarray(x, np.float32), examples, None, names) for x in both]


@pytest.mark.parametrize("name", tasks.TASKS)
def test_right_answers_score_better(name, tiny):
    task = registry.find("task", tasks.TASKS, name)
    right, wrong = scores_of(name, tiny)
    numbers = {key for key, value in right.items() if isinstance(value, float)}
    assert numbers == set(task.better) - set(task.at_end)
    assert set(task.better.values()) <= {HIGHER, LOWER} and task.best_metric in numbers
    for metric in numbers:
        better = task.better[metric]
        assert gain(right[metric], better) > gain(wrong[metric], better), metric


@pytest.mark.parametrize("name", ["seq2seq", "instruction"])
def test_what_is_written_is_better_higher(name):
    task = registry.find("task", tasks.TASKS, name)
    both = [{}, {}]
    for metrics in ("translation", "summary") if name == "seq2seq" else ("",):
        made = task(metrics=metrics) if metrics else task()
        texts = ["the film was very good", "it is one of two"]
        both = [
            found | made.written(each, texts)
            for found, each in zip(both, (texts, ["so", "too"]), strict=True)
        ]
    numbers = {key for key, value in both[0].items() if isinstance(value, float)}
    assert numbers == set(task.at_end)
    for metric in numbers:
        assert task.better[metric] == HIGHER and both[0][metric] > both[1][metric]


@pytest.mark.parametrize(
    ("better", "scores", "best_step", "worse"),
    [
        (LOWER, [3.0, 2.0, 4.0], 2, 1),
        (HIGHER, [3.0, 2.0, 4.0], 3, 0),
        (HIGHER, [math.nan, 0.1, math.nan], 2, 1),
        (LOWER, [math.nan, math.inf, 0.1], 3, 0),
        (HIGHER, [math.nan, math.nan], -1, 2),
    ],
)
def test_the_best_is_a_number(better, scores, best_step, worse):
    progress = Progress()
    for step, score in enumerate(scores, 1):
        progress.judge({"metric": score, "step": step}, "metric", better, step)
    assert (progress.best_step, progress.worse) == (best_step, worse)
    assert progress.validation["step"] == (best_step if best_step > 0 else len(scores))
    assert (progress.best is None) == (best_step < 0)


def test_a_saved_best_that_is_no_number_gives_way():
    progress = Progress(best=math.nan, best_step=1, validation={"metric": math.nan})
    progress.judge({"metric": 0.2}, "metric", HIGHER, 2)
    assert (progress.best, progress.best_step) == (0.2, 2)


def test_a_run_keeps_the_step_of_least_error(config_file, tmp_path):
    """Chosen by an error, stopped early by it; each metric's best step is that of its rows."""
    file = tmp_path / "config.py"
    file.write_text(config_file.read_text().replace("(method)", "(method, 'ordinal')"))
    changes = {"train.best_metric": "mean_absolute_error", "train.steps": 12}
    changes |= {"train.eval_every": 1, "train.early_stopping": 3, "train.log_every": 30}
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    ftjax("train", "--config", file, "--workdir", tmp_path / "run", *flags)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    name = "validation/mean_absolute_error"
    errors = {row["step"]: row[name] for row in map(json.loads, lines) if name in row}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    least = min(errors, key=errors.get)
    assert result["best_step"] == least
    assert result["metrics"]["validation"]["mean_absolute_error"] == errors[least]
    assert len(set(errors.values())) > 1 and max(errors) == min(12, least + 3)


@pytest.mark.parametrize("metric", ["perplexty", "bleu"])
def test_what_validation_does_not_have_is_refused_at_the_start(config_file, tmp_path, metric):
    file = tmp_path / "config.py"
    file.write_text(config_file.read_text().replace("(method)", "(method, 'regression')"))
    flags = ["--config.train.steps=1", f"--config.train.best_metric={metric}"]
    with pytest.raises(UserError, match="is not a metric that regression validates by"):
        here("train", "--config", file, "--workdir", tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
