"""Which way each metric of each task is better: as right answers score, against wrong ones."""

import json
import math

import numpy as np
import pytest

from ftjax import tasks
from ftjax.data.encode import Examples, ragged
from ftjax.errors import UserError
from ftjax.tasks.base import HIGHER, LOWER
from ftjax.training.progress import Best, gain
from tests.conftest import ftjax, here, write_jsonl
from tests.tasks.small_models import examples_of, split_of
from tests.tasks.test_span_qa import rows_of

LABELS = np.array([0, 1, 2, 1, 0, 2])
SIDES = np.eye(3, dtype=np.float32)[LABELS]
TOKENS = [np.tile([[0.1, 1.0, 1.0]], (6, 1)), np.tile([[3.0, 0.0, 1.0]], (6, 1))]
PAIR = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
PAIR /= np.linalg.norm(PAIR, axis=-1, keepdims=True)
NEAR = PAIR / 9 + 1
NEAR /= np.linalg.norm(NEAR, axis=-1, keepdims=True)
SIX = np.eye(6, dtype=np.float32)
# Task → arrays of examples, and outputs that are right and that are wrong
ANSWERS = {
    "classification": ({"labels": np.arange(6)}, 9 * SIX, -9 * SIX),
    "relation": ({"labels": np.arange(6)}, 9 * SIX, -9 * SIX),
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
        np.stack([NEAR, -NEAR * np.array([9, 8, 7, 6, 5, 4])[:, None]], 1),
    ),
    "preference": ({"reference": np.zeros((6, 2))}, SIDES[:, :2] * 0 + [3, -3], [[-3.0, 3.0]] * 6),
    "next_sentence": ({}, *(np.hstack([each, each[:, :2]]) for each in TOKENS)),
}

NAMES = tuple(f"{name}(e1,e2)" for name in "abcdef")
ROWS = {
    "classification": [{"text": "good", "label": name} for name in NAMES],
    "relation": [{"text": "<e1>a</e1> <e2>b</e2>", "label": name} for name in NAMES],
    "multilabel": [{"text": "good", "label": [NAMES[i]]} for i in LABELS],
    "contrastive": [{"text": "good", "text_pair": f"bad {i}", "label": i} for i in range(6)],
}


def scores_of(name, folder):
    """Metrics of right answers and of wrong ones, and those that there should be."""
    task = tasks.find(name)
    if name == "span_qa":
        task = task(impossible=True, stride=4)
        split, names, examples = examples_of(task, rows_of(8, 12, empty=0.5), folder)
        right = np.full((len(examples.ids.values), 2), -9.0)
        for i, at in enumerate(("starts_at", "ends_at")):
            right[examples.ids.offsets[:-1] + examples.arrays[at], i] = 9.0
        both = [task.score({"tokens": x}, examples, split, names) for x in (right, -right)]
        return *both, task.measured(split, names)
    if name == "token_classification":
        rows = [{"tokens": ["good", "film"], "tags": ["B-a", "O"], "label": "y"}]
        rows += [{"tokens": ["bad", "plot"], "tags": ["O", "B-a"], "label": "n"}]
        split, names, examples = examples_of(task(), rows, folder)
        tags = 9 * np.eye(2)[examples.tokens["tags"]] - 4.5
        labels = np.repeat(examples.arrays["labels"], examples.ids.lengths, 0) * 9 - 4.5
        right = np.hstack([tags, labels])
        both = [task().score({"tokens": x}, examples, split, names) for x in (right, -right)]
        return *both, task().measured(split, names)
    arrays, *both = ANSWERS.get(name, ({}, *TOKENS))
    examples = Examples(ragged([[1]] * 6), arrays=arrays)
    split = split_of(task(), ROWS[name]) if name in ROWS else None
    names = NAMES[: np.asarray(both[0]).shape[-1] + (name == "ordinal")]
    both = [task().score(np.asarray(x, np.float32), examples, split, names) for x in both]
    return *both, task().measured(split, names)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_right_answers_score_better(name, tiny):
    task = tasks.find(name)
    right, wrong, measured = scores_of(name, tiny)
    numbers = {key for key, value in right.items() if isinstance(value, float)}
    assert numbers == set(measured) == set(task.better) - set(task.at_end)
    assert right.get("averages", {}).keys() <= numbers
    assert set(task.better.values()) <= {HIGHER, LOWER} and task.best_metric in numbers
    for metric in numbers:
        better = task.better[metric]
        assert gain(right[metric], better) > gain(wrong[metric], better), metric


@pytest.mark.parametrize("name", ["seq2seq", "instruction"])
def test_what_is_written_is_better_higher(name):
    task = tasks.find(name)
    both = [{}, {}]
    for metrics in ("translation", "summary") if name == "seq2seq" else ("",):
        made = task(metrics=metrics) if metrics else task()
        texts = ["the film was very good", "it is one of two"]
        both = [
            found | made.written(each, [[text] for text in texts])
            for found, each in zip(both, (texts, ["so", "too"]), strict=True)
        ]
        assert {
            key for key in made.written(texts, [[text] for text in texts]) if key in task.at_end
        } == set((made if name == "seq2seq" else task(generate=1)).measured_written)
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
    best = Best()
    for step, score in enumerate(scores, 1):
        best.judge({"metric": score, "step": step}, "metric", better, step)
    assert (best.step, best.worse) == (best_step, worse)
    assert best.metrics["step"] == (best_step if best_step > 0 else len(scores))
    assert (best.score is None) == (best_step < 0)


def test_a_saved_best_that_is_no_number_gives_way():
    best = Best(math.nan, 1, metrics={"metric": math.nan})
    best.judge({"metric": 0.2}, "metric", HIGHER, 2)
    best.judge({"metric": 0.9, "loss": math.nan}, "metric", HIGHER, 3)
    assert (best.score, best.step) == (0.2, 2)


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


def test_metrics_that_a_split_does_not_have():
    """What `score` then gives is what `measured` says."""
    one = [{"text": "good", "text_pair": "bad", "label": 0}] * 3
    cases = {
        "classification": ({"labels": np.zeros(3, int)}, SIDES[:3, :2], one),
        "multilabel": ({"labels": SIDES[:3, :2] * 0 + [1, 0]}, SIDES[:3, :2], one),
        "contrastive": ({}, np.stack([PAIR, NEAR], 1)[:3], [{"text": "a", "text_pair": "b"}] * 3),
    }
    for name, (arrays, outputs, rows) in cases.items():
        task = tasks.find(name)()
        rows = [{**row, "label": ["0"]} for row in rows] if name == "multilabel" else rows
        split, examples = split_of(task, rows), Examples(ragged([[1]] * 3), arrays=arrays)
        scores = task.score(np.asarray(outputs, np.float32), examples, split, ("0", "1"))
        numbers = {key for key, value in scores.items() if isinstance(value, float)}
        assert numbers == set(task.measured(split, ("0", "1"))) < set(task.better), name


@pytest.mark.parametrize("metric", ["perplexty", "bleu", "spearman", "auroc"])
def test_what_validation_does_not_have_is_refused_at_the_start(config_file, tmp_path, metric):
    """The folder is then free for the same command with another."""
    file, pairs = tmp_path / "config.py", [{"text": "good", "text_pair": "film"}] * 9
    task = {"spearman": "contrastive", "auroc": "classification"}.get(metric, "regression")
    file.write_text(config_file.read_text().replace("(method)", f"(method, {task!r})"))
    flags = ["--config.train.steps=1", f"--config.train.best_metric={metric}"]
    message = f"is not a metric that {task} validates by"
    if task != "regression":
        more = []
        if metric == "auroc":  # validation is of one label
            pairs = [{**row, "label": "a"} for row in pairs]
            more = [{**pairs[0], "label": "b"}]
        write_jsonl(tmp_path / "data" / "train.jsonl", [*pairs, *more])
        write_jsonl(tmp_path / "data" / "validation.jsonl", pairs)
        flags += [f"--config.data.path={tmp_path / 'data'}", "--config.data.prepare=()"]
        message = f"best_metric='{metric}' cannot be computed of .*validation.jsonl, which gives "
    with pytest.raises(UserError, match=message):
        here("train", "--config", file, "--workdir", tmp_path / "run", *flags)
    assert not (tmp_path / "run").exists()
