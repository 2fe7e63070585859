"""Choices: against transformers' model, also of rows with fewer of them."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from ftjax.config import default_config
from ftjax.data.encode import Examples, ragged
from ftjax.data.loading import Loader
from ftjax.data.preparation.profile import label_counts
from ftjax.data.preparation.splits import draw, strata
from ftjax.data.sources import load
from ftjax.errors import UserError
from ftjax.setup.model import place_model
from ftjax.tasks.multiple_choice import MultipleChoice, number_of, numbers_of
from ftjax.tasks.multiple_choice import choices as read
from tests.conftest import WORDS, data_settings
from tests.tasks.small_models import (
    SmallModel,
    batches,
    equals,
    examples_of,
    layout,
    most_places,
    split_of,
    tensors,
    write_words,
)

pytestmark = pytest.mark.usefixtures("first_device")

TASK = MultipleChoice()


def rows_of(count, choices=(3,), seed=0):
    random = np.random.default_rng(seed)

    def text(most):
        return " ".join(random.choice(WORDS, int(random.integers(1, most))))

    rows = []
    for i in range(count):
        many = choices[i % len(choices)]
        found = [f"{text(5)} {WORDS[n]}" for n in range(many)]
        rows.append({"text": text(9), "choices": found, "label": int(random.integers(many))})
    return rows


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_words(tmp_path_factory.mktemp("choices"))
    return SmallModel.of(TASK, "bert", "choice", folder), folder


def test_long_texts_are_cut_as_transformers_cuts(made):
    folder = made[1]
    rows = [{"text": "film " * 9 + "bad", "choices": ["good", "a dull plot"], "label": 0}]
    _, _, examples = examples_of(TASK, rows, folder, 10)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [rows[0]["text"]] * 2
    cut = tokenizer(texts, rows[0]["choices"], truncation=True, max_length=10)["input_ids"]
    (batch,) = batches(examples, 1)
    choices = zip(batch["input_ids"][0], batch["attention_mask"][0], strict=True)
    assert [ids[mask > 0].tolist() for ids, mask in choices] == cut and examples.truncated == 1


def test_logits_loss_and_gradients_equal_transformers(made):
    made, folder = made
    _, _, examples = examples_of(TASK, rows_of(6), folder)
    (batch,) = batches(examples, 6)
    made.theirs.zero_grad()
    inputs = tensors(batch, "input_ids", "attention_mask", "token_type_ids", "labels")
    assert inputs["input_ids"].shape[:2] == (6, 3) and inputs["token_type_ids"].any()
    out = made.theirs(**inputs)
    out.loss.backward()
    wanted = out.logits.detach().numpy()
    found = made.outputs(examples, size=6)
    np.testing.assert_allclose(found[order(examples, 6)], wanted, atol=1e-4)
    found_loss, gradients = made.gradients(batch)
    np.testing.assert_allclose(found_loss, out.loss.item(), rtol=1e-5)
    equals(gradients, made.theirs)


def order(examples, size):
    """The examples of the one batch."""
    ((planned, _),) = Loader(examples, size, layout(examples, size, False), None)
    return planned.places


def test_rows_of_several_numbers_of_choices(made):
    """As transformers says of each row alone."""
    made, folder = made
    rows = rows_of(11, (2, 4, 3))
    split, names, examples = examples_of(TASK, rows, folder)
    assert examples.group == 4
    found = made.outputs(examples, size=4)
    losses, right = [], []
    for number, row in enumerate(rows):
        _, _, one = examples_of(TASK, [row], folder)
        (batch,) = batches(one, 1)
        assert batch["input_ids"].shape[1] == len(row["choices"])
        with torch.no_grad():
            out = made.theirs(
                **tensors(batch, "input_ids", "attention_mask", "token_type_ids", "labels")
            )
        losses.append(out.loss.item())
        right.append(int(out.logits.argmax()) == row["label"])
        many = len(row["choices"])
        np.testing.assert_allclose(found[number, :many], out.logits[0].numpy(), atol=1e-4)
        assert (found[number, many:] < -1e8).all()
    scores = TASK.score(found, examples, split, names)
    np.testing.assert_allclose(scores["loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(made.sums(batches(examples, 4)), np.mean(losses), rtol=1e-5)
    assert scores["accuracy"] == np.mean(right)
    for row, said in zip(rows, TASK.predictions(found, examples, split, names), strict=True):
        assert said["answer"] == row["choices"][said["choice"]]
        assert len(said["probabilities"]) == len(row["choices"])
        np.testing.assert_allclose(sum(said["probabilities"]), 1, atol=1e-5)


def test_pairs_equal_the_tokenizers(made):
    _, folder = made
    from ftjax.formats.folder import load_tokenizer

    rows = rows_of(5, (2, 3), seed=3)
    _, _, examples = examples_of(TASK, rows, folder, 12)
    tokenizer, number = load_tokenizer(folder), 0
    for row in rows:
        for choice in range(3):
            ids = examples.ids[number].tolist()
            wanted = []
            if choice < len(row["choices"]):
                pair = row["text"], row["choices"][choice]
                wanted = tokenizer(*pair, truncation=True, max_length=12)["input_ids"]
            assert ids == wanted
            number += 1
    assert examples.truncated == sum(
        any(len(tokenizer(row["text"], choice)["input_ids"]) > 12 for choice in row["choices"])
        for row in rows
    )


def test_labels_as_numbers_letters_and_texts():
    choices = read(["good", "bad", "C"])
    assert [number_of(label, choices) for label in ("0", "2", "A", "B", "good", "C")] == [
        0,
        2,
        0,
        1,
        0,
        2,
    ]
    assert number_of("1", read(["3", "1"])) == 1  # the text goes before the number
    named = read({"text": ["good", "bad", "ugly"], "label": ["1", "2", "3"]})  # as ARC has them
    assert [number_of(label, named) for label in ("1", "3", "bad", "A", "0")] == [0, 2, 1, 0, 0]
    for label in ("3", "-1", "D", "a", "ugly", "é"):
        with pytest.raises(ValueError, match=f"label '{label}' is none of the 3 choices"):
            number_of(label, choices)


def test_integers_are_numbers_before_texts(made, tmp_path):
    """Also those that a csv file can only have as text, where some are no text of a choice."""
    row = {"text": "it was", "choices": ["3", "2", "1", "0"]}
    for label, wanted in ((0, 0), (1, 1), (1.0, 1), ("1", 2), ("0", 3)):
        _, _, examples = examples_of(TASK, [{**row, "label": label}], made[1])
        assert examples.arrays["labels"].tolist() == [wanted]
    others = {"text": "it was", "choices": ["good", "bad", "2", "poor"], "label": "0"}
    rows = [{**row, "label": "1"}, others]
    with (tmp_path / "rows.csv").open("w") as file:
        writer = csv.DictWriter(file, others)
        writer.writeheader()
        writer.writerows({**each, "choices": json.dumps(each["choices"])} for each in rows)
    settings = data_settings("multiple_choice", source="csv", path=str(tmp_path / "rows.csv"))
    split = load(settings, TASK.schema)["train"]
    assert numbers_of(split.column("label"), split.column("choices")) == [1, 0]
    whole = split_of(TASK, [{**row, "label": number} for number in (0, 1, 1, 0, 1, 1)])
    assert label_counts(whole.column("label")) == {"0": 2, "1": 4}
    drawn = draw({"train": whole}, {"train": 0, "validation": 3, "test": 0}, 0, stratify=True)
    assert Counter(strata(drawn["validation"])) == {"0": 1, "1": 2}
    assert number_of(1905, read(["1904", "1905"])) == 1
    with pytest.raises(ValueError, match="label '²' is none of the 3 choices"):
        number_of("²", read(["a", "b", "c"]))


def test_choices_are_read_as_texts():
    """What is cleaned, and looked for among other rows, is all that the model reads."""
    assert TASK.schema.texts == ("text", "choices")
    row = {"text": "it was", "choices": ["good", "bad"]}
    assert len(split_of(TASK, [row], TASK.schema.to_predict()).rows) == 1
    with pytest.raises(UserError, match="label"):
        split_of(TASK, [row])


def test_the_constant_answer_is_the_most_frequent_place():
    """By the shares of places: one that is never right gets next to no chance."""
    labels = np.array([2, 0, 2, 2])
    examples = Examples(ragged([[1]] * 8), arrays={"labels": labels}, group=2)
    found = TASK.constant(examples, ())
    assert found.shape == (4, 3) and np.isfinite(found).all()
    chances = np.exp(found) / np.exp(found).sum(1, keepdims=True)
    np.testing.assert_allclose(chances, [[1 / 4, 0, 3 / 4]] * 4, atol=1e-6)


def test_rows_are_not_packed(made):
    """Each has a text a choice, of which one part of a row is none."""
    config = default_config("full", "multiple_choice")
    config.model.path, config.data.batching, config.data.max_length = str(made[1]), "pack", 32
    with pytest.raises(UserError, match="data.batching=pack is not for task.name=multiple_choice"):
        place_model(config, ())


def test_predicted_choices_have_six_places():
    row = {"text": "it was", "choices": ["good", "bad"]}
    split = split_of(TASK, [row], TASK.schema.to_predict())
    logits = np.log([[1.0, 2.0, 1e-30]])  # the row has no third choice
    (said,) = found = TASK.predictions(logits, None, split, ())
    assert said["choice"] == 1 and said["answer"] == "bad" and most_places(found) == 6
    assert said["probability"] == 0.666667 and said["probabilities"] == [0.333333, 0.666667]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "0"}, "row 2: field 'label' is '0', text, where rows before have an integer"),
        ({"label": 3}, "row 2: label 3 is none of the 3 choices"),
        ({"choices": ["good"]}, "row 2: field 'choices' must be a list of two texts or more"),
        ({"choices": ["good", " "]}, "row 2: field 'choices' is empty"),
        ({"choices": "good"}, "row 2: field 'choices' must be a list of two texts"),
        ({"label": 1.5}, "row 2: field 'label' must be a string or an integer"),
    ],
)
def test_bad_rows_are_named(made, row, message):
    good = rows_of(1)[0]
    with pytest.raises(UserError, match=message):
        examples_of(TASK, [good, {**good, **row}], made[1])
