"""Numbers, label sets and ordered labels: against torch, formulas by hand and transformers."""

import json

import numpy as np
import pandas
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from ftjax.data.encode import Examples, ragged
from ftjax.data.sources import load
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.tasks.base import cut_texts
from ftjax.tasks.multilabel import Multilabel
from ftjax.tasks.ordinal import Ordinal
from ftjax.tasks.regression import Regression
from tests.conftest import data_settings, ftjax, here, make_rows, write_jsonl

NAMES = ("a", "b", "c")
SCHEMAS = {"number": Regression.schema, "names": Multilabel.schema, "name": Ordinal.schema}


def of(labels):
    """Examples with labels and no tokens."""
    return Examples(ragged([[]] * len(labels)), arrays={"labels": labels})


def batch_of(labels):
    random = np.random.default_rng(1)
    return {"labels": labels, "weights": random.random(len(labels)).astype(np.float32)}


def weighted(losses, batch):
    """Σ weight · loss, from torch's loss a row."""
    return (losses.numpy() * batch["weights"]).sum()


def test_losses_equal_torch():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (9, 3)).astype(np.float32)
    tensor = torch.tensor(logits)
    binary = torch.nn.functional.binary_cross_entropy_with_logits

    numbers = batch_of(random.normal(2, 1, 9).astype(np.float32))
    found = Regression().loss(lambda _: logits[:, :1], numbers, True)
    wanted = (tensor[:, 0] - torch.tensor(numbers["labels"])) ** 2
    np.testing.assert_allclose(found.total, weighted(wanted, numbers), rtol=1e-5)

    sets = batch_of(random.integers(0, 2, (9, 3)).astype(np.float32))
    found = Multilabel().loss(lambda _: logits, sets, True)
    wanted = binary(tensor, torch.tensor(sets["labels"]), reduction="none").mean(1)
    np.testing.assert_allclose(found.total, weighted(wanted, sets), rtol=1e-5)
    np.testing.assert_allclose(found.weight, sets["weights"].sum(), rtol=1e-6)

    order = batch_of(random.integers(0, 4, 9))
    found = Ordinal().loss(lambda _: logits, order, True)
    codes = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], np.float32)
    wanted = binary(tensor, torch.tensor(codes[order["labels"]]), reduction="none").mean(1)
    np.testing.assert_allclose(found.total, weighted(wanted, order), rtol=1e-5)


@pytest.mark.parametrize("task", [Regression(), Multilabel(), Ordinal()])
def test_losses_of_packed_rows_are_those_of_rows(task):
    random, shape = np.random.default_rng(2), (2, 5)
    more = () if task == Regression() else (3,)
    labels = random.integers(0, 2, (*shape, *(more if task == Multilabel() else ())))
    batch = {"labels": labels.astype(np.float32), "weights": random.random(shape)}
    logits = random.normal(size=(*shape, 3 if more else 1)).astype(np.float32)
    flat = {name: value.reshape(10, *value.shape[2:]) for name, value in batch.items()}
    packed = task.loss(lambda _: logits, batch, True)
    rows = task.loss(lambda _: logits.reshape(10, -1), flat, True)
    np.testing.assert_allclose(packed.total, rows.total, rtol=1e-5)
    np.testing.assert_allclose(packed.weight, rows.weight, rtol=1e-6)


def test_regression_by_hand():
    found = np.array([[1.0], [2.0], [4.0], [3.0]])
    examples = of(np.array([1.0, 3.0, 4.0, 2.0], np.float32))
    scores = Regression().score(found, examples, None, ("value",))
    assert scores["mean_squared_error"] == 2 / 4 and scores["mean_absolute_error"] == 2 / 4
    np.testing.assert_allclose([scores["pearson"], scores["spearman"]], 0.8)  # 1 − 6·2 / (4·15)
    constant = Regression().score(np.ones((4, 1)), examples, None, ("value",))
    assert constant["pearson"] == constant["spearman"] == 0.0
    one = Regression().score(found, of(np.ones(4, np.float32)), None, ("value",))
    assert one["pearson"] == one["spearman"] == 0.0 and one["mean_absolute_error"] == 6 / 4
    unknown = Regression().score(found * [[1], [1], [np.nan], [1]], examples, None, ("value",))
    assert np.isnan(unknown["pearson"]) and np.isnan(unknown["spearman"])
    binary = np.array([[0.0], [1.0], [1.0], [0.0]])  # no more apart than by 1
    scores = Regression().score(binary, of(np.array([0, 1, 0, 0], np.float32)), None, ("value",))
    np.testing.assert_allclose(scores["pearson"], 1 / 3**0.5)  # φ = 2 / √(2 · 2 · 3 · 1)
    said = Regression().predictions(np.array([[2 / 3], [-1.0]]), None, None, ("value",))
    assert [row["value"] for row in said] == [0.666667, -1.0]


def test_label_sets_by_hand():
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], np.float32)
    logits = np.array([[1.0, -1, -1], [2, -3, -1], [-1, -1, 4], [-1, 1, -2]])
    scores = Multilabel().score(logits, of(truth), None, NAMES)
    # a: all right; b: one of two found; c: never there, found once
    assert scores["f1_micro"] == 2 * 3 / (2 * 3 + 1 + 1)
    np.testing.assert_allclose(scores["f1_macro"], (1 + 2 / 3 + 0) / 3)
    assert scores["accuracy"] == 2 / 4 and scores["hamming"] == 2 / 12
    low = Multilabel(threshold=0.2).predictions(np.array([[-1.0, -2, 0]]), None, None, NAMES)[0]
    assert low["labels"] == ["a", "c"] and low["probabilities"]["c"] == 0.5


def test_ordered_labels_by_hand():
    logits = np.array([[1.0, -1, -1], [1, 1, -1], [-1, -1, -1], [1, 1, 1]])
    examples = of(np.array([1, 3, 0, 3]))  # found: 1, 2, 0, 3
    names = ("0", "1", "2", "3")
    scores = Ordinal().score(logits, examples, None, names)
    assert scores["accuracy"] == 3 / 4 and scores["mean_absolute_error"] == 1 / 4
    above = np.array([1, 3, 0, 3])[:, None] > np.arange(3)
    wanted = np.log1p(np.exp(np.where(above, -logits, logits))).mean()
    np.testing.assert_allclose(scores["loss"], wanted, rtol=1e-5)
    # 1 − Σ (i − j)² observed / Σ (i − j)² expected by chance, both over 4 rows
    expected = sum((i - j) ** 2 for i in (1, 3, 0, 3) for j in (1, 2, 0, 3)) / 4
    np.testing.assert_allclose(scores["kappa"], 1 - 1 / expected)
    same = Ordinal().score(logits[2:3], of(np.array([0])), None, names)
    assert same["kappa"] == 1.0
    assert Ordinal().predictions(logits, None, None, names)[1]["label"] == "2"
    assert Ordinal().output_names(names) == ("> 0", "> 1", "> 2")


@pytest.mark.parametrize(
    ("kind", "label", "wanted"),
    [
        ("number", 2, 2.0),
        ("number", " 2.5 ", 2.5),
        ("names", ["b", "a", "b"], ["a", "b"]),
        ("names", "b, a", ["a", "b"]),
        ("names", [3], ["3"]),
        ("names", "[\"say 'a' 'b'\", \"it's\"]", ["it's", "say 'a' 'b'"]),
        ("names", "{}", []),
        ("name", True, "1"),
        ("name", 1.0, "1"),  # of a column with gaps, as pandas has it
    ],
)
def test_labels_of_each_kind(tmp_path, kind, label, wanted):
    file = write_jsonl(tmp_path / "train.jsonl", [{"text": "good", "label": label}])
    found = load(data_settings(path=str(file)), SCHEMAS[kind])["train"].rows[0]["label"]
    assert found == wanted


LISTS = [
    ([[0, 1, 1], [0, 0, 0], [1, 0, 0]], [["1", "2"], [], ["0"]]),
    ([[True, False], [False, False]], [["0"], []]),
    ([[1.0, 0.0], [0.0, 1.0]], [["0"], ["1"]]),
    ([[27], [0, 1], []], [["27"], ["0", "1"], []]),  # numbers of labels
    ([["joy", "fear"], []], [["fear", "joy"], []]),
]


@pytest.mark.parametrize(("labels", "wanted"), LISTS)
def test_lists_of_labels_and_indicators(tmp_path, labels, wanted):
    """As lists, and in cells of a table as pandas and json write them."""
    for number, write in enumerate((lambda x: x, repr, json.dumps)):
        rows = [{"text": "good", "label": write(label)} for label in labels]
        file = tmp_path / str(number) / "train.csv"
        if number:
            file.parent.mkdir()
            pandas.DataFrame(rows).to_csv(file)
        else:
            write_jsonl(file.with_suffix(".jsonl"), rows)
        settings = data_settings(source="csv" if number else "json", path=str(file.parent))
        assert load(settings, Multilabel.schema)["train"].column("label") == wanted


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["['joy' 'fear']"], "row 1: field 'label' must be a list with commas between"),
        (["['joy'\n 'fear']"], "row 1: field 'label' must be a list with commas between"),
        *(
            ([cell], "row 1: field 'label' must be a list that can be read")
            for cell in ("[joy, fear", "{joy,fear}", "(joy, fear)", "array(['joy', 'fear'])")
        ),
        ([[0, 1, 1], [0, 1]], "row 1: field 'label' is .*a number for each label needs as many"),
        ([[0, 1, 1]] * 1000 + [[1]], "row 1001: field 'label' must be 3 numbers 0 or 1"),
    ],
)
def test_lists_of_two_forms_are_refused(tmp_path, labels, message):
    rows = [{"text": "good", "label": label} for label in labels]
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(UserError, match=message):
        load(data_settings(path=str(file)), Multilabel.schema)


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        ("number", "high", "row 2: field 'label' must be a number, not 'high'"),
        ("number", float("inf"), "must be a finite number, not inf"),
        ("number", True, "must be a number, not True"),
        ("number", "1_000", "must be a number, not '1_000'"),
        ("number", "3,5", "must be a number, not '3,5'"),
        ("names", 3, "row 2: field 'label' must be a list of names"),
        ("names", [0.5], "must be a string or an integer"),
        ("name", 0.5, "row 2: field 'label' must be a string or an integer, not 0.5"),
    ],
)
def test_labels_of_another_kind_are_named(tmp_path, kind, label, message):
    good = {"number": 1.0, "names": ["a"], "name": "a"}[kind]
    rows = [{"text": "good", "label": good}, {"text": "bad", "label": label}]
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(UserError, match=message) as error:
        load(data_settings(path=str(file)), SCHEMAS[kind])
    assert str(file) in str(error.value)


def test_numbers_as_labels_are_in_their_order(tmp_path):
    for labels in (["10.0", "9.5", "-1.0"], ["10", "9", "-1"], ["10.50", "10", "9"], ["²", "³"]):
        rows = [{"text": "good", "label": label} for label in labels]
        file = write_jsonl(tmp_path / "train.jsonl", rows)
        split = load(data_settings(path=str(file)), Ordinal.schema)["train"]
        names = sorted(labels) if "²" in labels else sorted(labels, key=float)
        assert Ordinal().label_names(split) == tuple(names)


def labelled(task, row, number):
    """A row with a label that its words tell."""
    positive = row["label"] == "positive"
    label = {
        "regression": 4.0 if positive else 1.0,
        "multilabel": ["good"] * positive + ["odd"] * (number % 2) or ["bad"],
        "ordinal": str(number % 2 + 2 * positive),
    }[task]
    return {**row, "label": label}


@pytest.mark.parametrize(
    ("task", "batching"), [("regression", "bucket"), ("multilabel", "pack"), ("ordinal", "bucket")]
)
def test_from_rows_to_predictions(config_file, tmp_path, task, batching):
    """Trained, evaluated, predicted; what is exported gives transformers' outputs and loss."""
    for seed, (split, count) in enumerate({"train": 150, "validation": 40, "test": 40}.items()):
        rows = [labelled(task, row, i) for i, row in enumerate(make_rows(count, seed))]
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", rows)
    file, work = tmp_path / "config.py", tmp_path / "work"
    text = config_file.read_text().replace(
        "default_config(method)", f"default_config(method, {task!r})"
    )
    file.write_text(text)
    changes = [f"--config.data.path={tmp_path / 'data'}", f"--config.data.batching={batching}"]
    changes += ["--config.train.epochs=6", "--config.train.log_every=10"]
    ftjax("train", "--config", file, "--workdir", work, *changes)
    rows = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    result = json.loads((work / "result.json").read_text())
    assert result["task"] == task and result["best_metric"] in result["metrics"]["test"]
    ftjax("predict", "--workdir", work, "--input", tmp_path / "data" / "test.jsonl",
          "--output", tmp_path / "found.jsonl")  # fmt: skip
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    ftjax("export", "--workdir", work, "--format", "hf", "--output", tmp_path / "hf")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    schema = {"regression": SCHEMAS["number"], "multilabel": SCHEMAS["names"]}
    split = load(data_settings(path=str(tmp_path / "data")), schema.get(task, SCHEMAS["name"]))[
        "test"
    ]
    inputs = tokenizer(
        split.column("text"), padding=True, truncation=True, max_length=32, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**inputs).logits.numpy()
    first = found[0]
    if task == "regression":
        np.testing.assert_allclose([row["value"] for row in found], logits[:, 0], atol=1e-4)
        return
    said = first["probabilities"] if task == "multilabel" else first["above"]
    np.testing.assert_allclose(list(said.values()), 1 / (1 + np.exp(-logits[0])), atol=1e-4)
    names = list(model.config.id2label.values())
    assert names == [f"> {name}" for name in said] if task == "ordinal" else names == list(said)
    assert model.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("names", [("text",), ("text", "text_pair")])
def test_texts_that_are_cut_are_counted(tiny, names):
    """Those whose tokens are more than there is room for, at every length about it."""
    columns = {name: [" ".join(["good"] * n) for n in range(1, 15)] for name in names}
    tokenizer = load_tokenizer(tiny)
    whole = tokenizer(*columns.values())["input_ids"]
    found = cut_texts(tokenizer, columns, names, 12)
    assert found["cut"] == [len(ids) > 12 for ids in whole] and any(found["cut"])
    assert [len(ids) for ids in found["input_ids"]] == [min(len(ids), 12) for ids in whole]


def test_a_new_head_for_numbers_starts_at_their_mean(config_file, tmp_path):
    """By rates too small to move it; a head that was trained before keeps its own."""
    file, mean = tmp_path / "config.py", {}
    text = config_file.read_text().replace("(method)", "(method, 'regression')")
    file.write_text(text)
    for name, more in {"low": 0.0, "high": 100.0}.items():
        rows = [{**row, "label": len(row["text"]) + more} for row in make_rows(40, 0)]
        mean[name] = np.mean([row["label"] for row in rows])
        for split in ("train", "validation"):
            write_jsonl(tmp_path / name / f"{split}.jsonl", rows)

    def bias(name: str, *changes: str) -> np.ndarray:
        """After two steps on the rows called so."""
        work = tmp_path / f"of_{name}"
        settings = {"data.path": tmp_path / name, "data.prepare": "()"}
        settings |= {"optimizer.learning_rate": 1e-9, "train.steps": 2}
        changes += tuple(f"--config.{key}={value}" for key, value in settings.items())
        here("train", "--config", file, "--workdir", work, *changes)
        here("export", "--workdir", work, "--format", "hf", "--output", tmp_path / f"{name}_hf")
        return load_file(tmp_path / f"{name}_hf" / "model.safetensors")["classifier.bias"]

    np.testing.assert_allclose(bias("low"), mean["low"], rtol=1e-5)
    again = bias("high", f"--config.model.path={tmp_path / 'low_hf'}")
    np.testing.assert_allclose(again, mean["low"], rtol=1e-5)
