"""What a run leaves to be looked at, and what it says of a model that is of no use."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.dummy import DummyClassifier, DummyRegressor

from ftjax import tasks
from ftjax.config import default_config
from ftjax.data.encode import Examples, ragged
from ftjax.errors import UserError
from ftjax.evaluation import preparation_models
from ftjax.evaluation.predictor import Predictor
from ftjax.files import to_line, write_json
from ftjax.formats.folder import locate
from ftjax.html import curves, percent
from ftjax.runs.predictions import certainty, right
from ftjax.runs.report import write_report
from ftjax.setup.diagnostics import baseline, of_data, of_result, of_training, unknown_tokens
from ftjax.setup.model import place_model
from ftjax.setup.splits import read_data
from ftjax.workdir.folder import read_workdir
from ftjax.workdir.records import read_metrics
from ftjax.workdir.result import read_result
from tests.conftest import ftjax, here, make_rows, write_jsonl

pytestmark = pytest.mark.usefixtures("first_device")

NAMES = ("a", "b", "c")
LABELS = np.array([0, 2, 2, 1, 2, 0], np.int32)


@pytest.fixture(scope="module")
def useless(config_file, tmp_path_factory):
    """A work folder of a run whose learning rate is 1e6, on rows of one file."""
    folder = tmp_path_factory.mktemp("useless")
    rows = [{**row, "text": f"{row['text']} <b>&"} for row in make_rows(120, 0)]
    data, work = write_jsonl(folder / "train.jsonl", rows), folder / "run"
    options = ["splits.validation=0.2", "splits.test=0.2", f"path={data}"]
    options = [f"--config.data.{each}" for each in options]
    options += ["--config.optimizer.learning_rate=1e6", "--config.train.epochs=2"]
    options += ["--config.train.log_every=1", "--config.optimizer.name=sgd"]
    options += ["--config.optimizer.warmup=0", "--config.optimizer.schedule=constant"]
    ftjax("train", "--config", f"{config_file}:full", "--workdir", work, *options)
    return work, rows


def test_rows_are_kept_with_what_was_said(useless):
    work, rows = useless
    result = read_result(work)
    for split in ("validation", "test"):
        drawn = [json.loads(line) for line in (work / f"splits/{split}.jsonl").open()]
        said = [json.loads(line) for line in (work / f"predictions_{split}.jsonl").open()]
        for row, answer in zip(drawn, said, strict=True):
            assert row["text"] == answer["text"] == rows[row["row"] - 1]["text"]
            assert answer["expected"] == {"label": rows[answer["row"] - 1]["label"]}
            assert answer["right"] == (answer["predicted"]["label"] == row["label"])
            assert answer["certainty"] == max(answer["predicted"]["probabilities"].values())
        scores, truth = result["metrics"][split], [row["label"] for row in drawn]
        assert np.mean([answer["right"] for answer in said]) == scores["accuracy"]
        constant = DummyClassifier().fit(truth, truth).predict(truth)
        assert scores["baseline"]["accuracy"] == pytest.approx(sk.accuracy_score(truth, constant))
        macro = sk.f1_score(truth, constant, average="macro")
        assert scores["baseline"]["f1"] == pytest.approx(macro)
    left = [int(line) for line in (work / "splits/train_rows.txt").read_text().split()]
    held = [
        json.loads(line)["row"]
        for s in ("validation", "test")
        for line in (work / f"splits/{s}.jsonl").open()
    ]
    texts = [rows[number - 1]["text"] for number in left]  # of which none comes twice
    assert len({*texts}) == len(texts) and not {*left} & {*held}
    assert {*texts} == {row["text"] for n, row in enumerate(rows, 1) if n not in held}


def test_a_useless_model_is_said_to_be_one(useless):
    work, _ = useless
    warnings = "\n".join(read_result(work)["warnings"])
    assert "the training loss did not fall" in warnings
    assert "of all" in warnings and "no better than" in warnings
    assert f"{read_result(work)['metrics']['test']['baseline']['accuracy']:.4f}" in warnings


def test_the_report_is_a_page_of_its_own(useless):
    work, _ = useless
    page = (work / "report.html").read_text()
    assert page.count("<svg") == 3 and "src=" not in page and "<script" not in page
    assert "&lt;b&gt;&amp;" in page and "<b>&" not in page  # what data holds is escaped
    for found in ("did not fall", "always the same answer", "What was taken for what (test)"):
        assert found in page
    for name in ("data_report.html", "predictions_test.jsonl", "splits/train_rows.txt"):
        assert f'href="{name}"' in page and (work / name).exists()
    wrong = [json.loads(line) for line in (work / "predictions_test.jsonl").open()]
    assert sum(not row["right"] for row in wrong) == page.count('class="said"') > 0


def test_axes_have_numbers_that_differ():
    """Of few steps, and of values that hardly do."""

    def ticks(points):
        found = re.findall(r'text-anchor="(\w+)">([^<]*)<', curves("a", {"a": points}))
        return [t for a, t in found if a == "end"], [t for a, t in found if a == "middle"][:-1]

    assert ticks([(3, 0.4)]) == (["0.36", "0.38", "0.4", "0.42", "0.44"], ["3"])
    assert ticks([(1, 0.0), (2, 1.0)])[1] == ["1", "2"]
    assert ticks([(10, 1e-5), (5000, 2e-5)])[1] == ["10", "1,258", "2,505", "3,752", "5,000"]
    for values in ((0.69321, 0.69322), (1e-5, 2e-5), (-3.0, 1e6)):
        assert len({*ticks(list(enumerate(values)))[0]}) == 5


def test_small_shares_have_digits():
    shares = (0.0, 34e-6, 9e-4, 0.00328, 1.0)
    assert [*map(percent, shares)] == ["0.00%", "0.0034%", "0.09%", "0.33%", "100.00%"]


def test_numbers_that_are_not_finite_are_json(tmp_path):
    row = {"step": 3, "loss": math.nan, "deep": {"a": [math.inf, -math.inf, 1.5]}}
    strict = {"parse_constant": pytest.fail}
    wanted = {"step": 3, "loss": None, "deep": {"a": [None, None, 1.5]}}
    assert json.loads(to_line(row), **strict) == wanted
    file = tmp_path / "metrics.jsonl"  # as older runs wrote it, and as it is written
    file.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": null}\n{"step": 3, "loss": 1}\n')
    assert [row["loss"] for row in read_metrics(file)] == [None, None, 1]
    assert "NaN" not in curves("loss", {"loss": [(1, math.nan), (2, None), (3, 1.0), (4, 2.0)]})


def test_a_result_without_a_number_is_read(useless, tmp_path):
    result = json.loads((useless[0] / "result.json").read_text())
    result["metrics"]["test"]["accuracy"] = math.nan
    write_json(tmp_path / "result.json", result)
    assert "NaN" not in (tmp_path / "result.json").read_text()
    assert math.isnan(read_result(tmp_path)["metrics"]["test"]["accuracy"])
    write_report(tmp_path)  # also where nothing else is
    del result["metrics"]["test"]["accuracy"]  # as AUROC of a split of one label
    write_json(tmp_path / "result.json", result)
    assert "accuracy" not in read_result(tmp_path)["metrics"]["test"]
    write_report(tmp_path)


def test_other_data_has_scores_of_its_own(useless, tmp_path, capsys):
    """What is the run's own is told by content, wherever it lies."""
    work, rows = useless
    here("evaluate", "--workdir", work)
    own = (work / "evaluate_test.json").read_bytes()
    assert json.loads(own)["baseline"] == read_result(work)["metrics"]["test"]["baseline"]
    assert "an answer that is always the same: accuracy" in capsys.readouterr().out
    data = write_jsonl(tmp_path / "moved.jsonl", rows)
    here("evaluate", "--workdir", work, f"--config.data.path={data.parent}/moved.jsonl")
    other = write_jsonl(tmp_path / "other rows.jsonl", make_rows(9, 5))
    here("evaluate", "--workdir", work, f"--config.data.path={other}")
    (found,) = work.glob("evaluate_test_other-rows_*.json")
    assert json.loads(found.read_text())["examples"] == 9
    assert (work / "evaluate_test.json").read_bytes() == own


def test_a_work_folder_is_an_adapter(useless):
    work, _ = useless
    config = read_workdir(work)
    config.model.adapter = str(work)
    data = read_data(
        config, tasks.create(config.task), locate(config.model.path), preparation_models
    )
    run = place_model(config, data.names)
    assert not run.absent
    outputs, examples = Predictor(run, data.names, 0, work).outputs(data.raw["test"])
    found = run.task.score(outputs, examples, data.raw["test"], data.names)
    wanted = read_result(work)["metrics"]["test"]
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5) and found["loss"] > 10
    other = default_config("lora")
    other.update({name: config[name] for name in ("model", "data", "train", "task")})
    with pytest.raises(UserError, match="is of method.name='[a-z_]+', not 'lora'"):
        place_model(other, data.names)


def rows_of(label):
    return SimpleNamespace(rows=range(len(label)), column=lambda _: list(label))


def test_constant_answers_equal_scikit_learn_s():
    examples = Examples(ragged([[1]] * 6), arrays={"labels": LABELS})
    split = rows_of([NAMES[i] for i in LABELS])
    found = baseline(tasks.create({"name": "classification"}), examples, split, NAMES)
    guess = DummyClassifier().fit(LABELS, LABELS).predict(LABELS)
    assert found["accuracy"] == sk.accuracy_score(LABELS, guess) == 0.5
    prior = DummyClassifier(strategy="prior").fit(LABELS, LABELS).predict_proba(LABELS)
    assert found["log_loss"] == pytest.approx(sk.log_loss(LABELS, prior), abs=1e-5)
    ordered = baseline(tasks.create({"name": "ordinal"}), examples, split, NAMES)
    assert ordered["accuracy"] == 0.5 and ordered["kappa"] == 0
    numbers = np.array([1.0, 2.5, 4.0], np.float32)
    examples = Examples(ragged([[1]] * 3), arrays={"labels": numbers})
    found = baseline(tasks.create({"name": "regression"}), examples, rows_of(numbers), ("value",))
    guess = DummyRegressor().fit(numbers, numbers).predict(numbers)
    assert found["mean_squared_error"] == pytest.approx(sk.mean_squared_error(numbers, guess))
    sets = np.array([[1, 0], [1, 1], [1, 0]], np.float32)
    examples = Examples(ragged([[1]] * 3), arrays={"labels": sets})
    split = rows_of([["x"], ["x", "y"], ["x"]])
    found = baseline(tasks.create({"name": "multilabel"}), examples, split, ("x", "y"))
    assert found["accuracy"] == pytest.approx(2 / 3)
    tokens = {"tags": np.array([0, 0, 1, 0]), "tagged": np.array([1, 1, 1, 0])}
    tagger = tasks.create({"name": "token_classification"})
    found = tagger.constant(Examples(ragged([[1, 2, 3, 4]]), tokens), ("O", "B-x"))["tokens"]
    assert found.argmax(-1).tolist() == [0, 0, 0, 0]
    assert baseline(tasks.create({"name": "causal_lm"}), examples, split, ()) == {}


def test_doubts_by_hand():
    report = [
        {"step": "encode", "split": "train", "tokens": 200, "unknown_tokens": 130},
        {"step": "encode", "split": "test", "tokens": 200, "unknown_tokens": 10},
    ]
    found = list(of_data(("good", "bad", "Good "), report))
    assert len(found) == 2 and "65% of the tokens of train" in found[0] and "130 of 200" in found[0]
    assert "'good' and 'Good '" in found[1]
    falls = [{"step": i, "loss": 9.0 - i} for i in range(8)]
    assert not list(of_training(falls)) and not list(of_training(falls[:1]))
    (said,) = of_training([{"step": 1, "loss": 0.7}, {"step": 2}, {"step": 3, "loss": 4e6}])
    assert "0.7 at first, 4e+06 at last" in said
    good = {"accuracy": 0.9, "baseline": {"accuracy": 0.5}, "confusion": [[4, 1], [0, 5]]}
    assert not list(of_result("test", good, "accuracy", "higher", NAMES))
    assert list(of_result("test", {**good, "accuracy": 0.5}, "accuracy", "higher", NAMES))
    assert not list(of_result("test", {**good, "accuracy": 0.4}, "accuracy", "lower", NAMES))
    (said,) = of_result(
        "test", {**good, "confusion": [[0, 4], [0, 6]]}, "accuracy", "higher", NAMES
    )
    assert "says 'b' of all 10 test rows" in said


def test_unknown_tokens_are_counted():
    kinds = {"unk_token_id": 1, "eos_token_id": 2, "bos_token_id": None, "pad_token_id": 0}
    examples = Examples(ragged([[1, 5, 1], [7, 2]]))
    assert unknown_tokens(examples, SimpleNamespace(**kinds)) == 2
    assert unknown_tokens(examples, SimpleNamespace(**{**kinds, "unk_token_id": 2})) == 0
    assert unknown_tokens(examples, SimpleNamespace(**{**kinds, "unk_token_id": None})) == 0


@pytest.mark.parametrize(
    ("expected", "said", "target", "verdict", "sure"),
    [
        ({"label": "a"}, {"label": "a", "probabilities": {"a": 0.7, "b": 0.3}}, 0, True, 0.7),
        ({"label": "b"}, {"label": "a", "probability": 0.6}, 1, False, 0.6),
        ({"label": ["a"]}, {"labels": ["a"], "probabilities": {"a": 0.8, "b": 0.4}}, 0, True, 0.6),
        ({"label": "x"}, {"choice": 1, "probabilities": [0.1, 0.9]}, 1, True, 0.9),
        ({"label": "x"}, {"label": "x", "above": {"x": 0.2, "y": 0.1}}, 0, True, 0.8),
        ({"tags": ["O", "B-x"]}, {"tags": ["O", "O"]}, None, False, None),
        ({"tags": ["O"], "label": "a"}, {"tags": ["O"], "label": "b"}, None, False, None),
        ({"answers": {"text": ["The Film"]}}, {"answer": "the film"}, None, True, None),
        ({"answers": {"text": ["The Film"]}}, {"answer": "a film."}, None, True, None),
        ({"answers": {"text": []}}, {"answer": ""}, None, True, None),
        ({"label": 2.0}, {"value": 1.5}, 2.0, None, None),
        ({}, {"loss": 1.5, "tokens": 3}, None, None, None),
        ({}, {"preferred": "chosen", "probability": 0.9}, None, True, 0.9),
    ],
)
def test_verdicts_by_hand(expected, said, target, verdict, sure):
    assert right(expected, said, target) is verdict
    assert certainty(said) == sure
