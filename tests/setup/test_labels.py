"""A finished head is read with the labels that its folder names, in their order."""

import numpy as np
import pytest
import torch
import transformers

from ftjax import tasks
from ftjax.config import default_config
from ftjax.errors import UserError
from ftjax.evaluation import preparation_models
from ftjax.evaluation.predictor import Predictor
from ftjax.setup.model import place_model
from ftjax.setup.splits import read_data
from tests.conftest import CONFIG, WORDS, write_jsonl, write_tokenizer

pytestmark = pytest.mark.usefixtures("first_device")

NAMES = ("neutral", "Angry", "joyful")
TAGS = ("I-per", "O", "B-per")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished head of transformers by its kind and names: the folder, and the model."""
    models = {}

    def get(kind: str, names: tuple[str, ...]):
        if (kind, names) not in models:
            folder = tmp_path_factory.mktemp("finished")
            torch.manual_seed(0)
            sizes = {**CONFIG, "num_hidden_layers": 2}
            config = transformers.BertConfig(**sizes, id2label=dict(enumerate(names)))
            model = getattr(transformers, f"BertFor{kind}Classification")(config).eval()
            write_tokenizer(folder)
            each = [logits(folder, model, text).reshape(-1, len(names)) for text in texts()]
            model.classifier.bias.data -= torch.tensor(np.median(np.concatenate(each), 0))
            model.save_pretrained(folder)
            models[kind, names] = folder, model
        return models[kind, names]

    return get


def texts(count=24):
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, random.integers(2, 9))) for _ in range(count)]


def logits(folder, model, text):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits[0].numpy()


def read(task, folder, rows, tmp_path, **changes):
    """Data and model, as a run begins with them."""
    config = default_config("full", task)
    config.model.path = str(folder)
    config.data.path = str(write_jsonl(tmp_path / "train.jsonl", rows))
    config.data.max_length, config.data.prepare = 32, ()
    config.data.splits.validation = 0.0
    for key, value in changes.items():
        section, name = key.split("_", 1)
        config[section][name] = value
    data = read_data(config, tasks.create(config.task), folder, preparation_models)
    return config, data


def scores(task, folder, rows, tmp_path, **changes):
    config, data = read(task, folder, rows, tmp_path, **changes)
    run = place_model(config, data.names)
    assert not run.absent
    predictor = Predictor(run, data.names, 0, tmp_path)
    split = data.raw["train"]
    outputs, examples = predictor.outputs(split)
    return outputs, run.task.score(outputs, examples, split, data.names)


@pytest.mark.parametrize("names", [NAMES, ("LABEL_0", "LABEL_1", "LABEL_2")])
def test_classes(finished, tmp_path, names):
    """Spelled in capitals or not; unnamed outputs by number, also where a label has no row."""
    folder, model = finished("Sequence", names)
    found = {text: int(logits(folder, model, text).argmax()) for text in texts()}
    assert len({*found.values()}) > 1
    labels = [name.lower() for name in names] if names == NAMES else range(3)
    rows = [{"text": text, "label": labels[number]} for text, number in found.items()]
    assert scores("classification", folder, rows, tmp_path)[1]["accuracy"] == 1.0
    some = [row for row in rows if row["label"] != labels[0]]
    assert scores("classification", folder, some, tmp_path)[1]["accuracy"] == 1.0


def test_names_given_to_a_head_that_has_none(finished, tmp_path):
    folder, model = finished("Sequence", ("LABEL_0", "LABEL_1", "LABEL_2"))
    rows = [{"text": t, "label": NAMES[logits(folder, model, t).argmax()]} for t in texts()]
    assert scores("classification", folder, rows, tmp_path, task_labels=NAMES)[1]["accuracy"] == 1.0
    with pytest.raises(UserError, match=r"LABEL_0, LABEL_1, LABEL_2: name them in order in task"):
        read("classification", folder, rows, tmp_path)


def test_label_sets(finished, tmp_path):
    folder, model = finished("Sequence", NAMES)
    rows = [
        {"text": t, "label": [NAMES[i] for i in np.flatnonzero(logits(folder, model, t) > 0)]}
        for t in texts()
    ]
    assert {name for row in rows for name in row["label"]} == {*NAMES}
    assert scores("multilabel", folder, rows, tmp_path)[1]["accuracy"] == 1.0


def test_tags(finished, tmp_path):
    folder, model = finished("Token", TAGS)
    rows = []
    for text in texts():
        guess = [TAGS[i] for i in logits(folder, model, text)[1:-1].argmax(-1)]
        for i, tag in enumerate(guess):  # what is no BIO becomes so
            if tag == "I-per" and (i == 0 or guess[i - 1] == "O"):
                guess[i] = "B-per"
        rows.append({"tokens": text.split(), "tags": guess})
    wanted = sum(
        tag == TAGS[i]
        for row in rows
        for tag, i in zip(
            row["tags"],
            logits(folder, model, " ".join(row["tokens"]))[1:-1].argmax(-1),
            strict=True,
        )
    ) / sum(len(row["tags"]) for row in rows)
    found = scores("token_classification", folder, rows, tmp_path)[1]["accuracy"]
    assert found == wanted and wanted > 0.5


def test_steps_of_an_order_and_numbers(finished, tmp_path):
    folder, model = finished("Sequence", ("> low", "> high"))
    order = ("low", "high", "best")
    rows = [{"text": t, "label": order[int((logits(folder, model, t) > 0).sum())]} for t in texts()]
    assert {row["label"] for row in rows} >= {"best"}
    assert scores("ordinal", folder, rows, tmp_path)[1]["accuracy"] == 1.0
    folder, model = finished("Sequence", ("LABEL_0",))
    wanted = [float(logits(folder, model, text)[0]) for text in texts()]
    rows = [{"text": t, "label": value} for t, value in zip(texts(), wanted, strict=True)]
    outputs, found = scores("regression", folder, rows, tmp_path)
    np.testing.assert_allclose(outputs[:, 0], wanted, atol=1e-5)
    assert found["mean_absolute_error"] < 1e-5


@pytest.mark.parametrize("task", ["classification", "multilabel", "token_classification"])
def test_other_labels_are_refused(finished, tmp_path, task):
    kind, names = ("Token", TAGS) if task == "token_classification" else ("Sequence", NAMES)
    folder, _ = finished(kind, names)
    own = (
        {"tokens": ["a"], "tags": ["B-place"]} if kind == "Token" else {"text": "a", "label": "sad"}
    )
    rest = {"tokens": ["a"], "tags": ["O"]} if kind == "Token" else {"text": "b", "label": "Angry"}
    other = "B-place, O" if kind == "Token" else "Angry, sad"
    with pytest.raises(
        UserError,
        match=f"train.jsonl has the labels {other}, and the head of model.path {', '.join(names)}: "
        "rename .* or set model.new_head=True",
    ):
        read(task, folder, [own, rest], tmp_path)
    _, data = read(task, folder, [own, rest], tmp_path, model_new_head=True)
    assert set(data.names) == ({"O", "B-place"} if kind == "Token" else {"sad", "Angry"})
