"""Tags of words: against seqeval, transformers, and words that are lost or cut off."""

import numpy as np
import pytest
import torch
from seqeval import metrics as sq
from seqeval.scheme import IOBES

from ftjax.data.loading import token_index
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.tasks.schemes import check_tags, scheme_of
from ftjax.tasks.spans import first_tokens
from ftjax.tasks.token_classification import INTENT, TokenClassification
from tests.conftest import WORDS
from tests.tasks.small_models import (
    SmallModel,
    batches,
    equals,
    examples_of,
    loader,
    tensors,
    write_trained,
    write_words,
)

TASK = TokenClassification()
NAMES = ("O", "B-per", "I-per", "B-place", "I-place")


def random_tags(random, count, scheme="BIO"):
    """Tags of `count` words: entities of one to three words."""
    tags = []
    while len(tags) < count:
        size = min(int(random.integers(1, 4)), count - len(tags))
        kind = random.choice(["per", "place"])
        if random.random() < 0.5:
            tags.append("O")
        elif scheme == "BIO":
            tags += [f"B-{kind}", *[f"I-{kind}"] * (size - 1)]
        elif size == 1:
            tags.append(f"S-{kind}")
        else:
            tags += [f"B-{kind}", *[f"I-{kind}"] * (size - 2), f"E-{kind}"]
    return tags


def rows_of(count, seed=0, scheme="BIO", **more):
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        size = int(random.integers(1, 14))
        tokens = [str(word) for word in random.choice(WORDS, size)]
        rows.append({"tokens": tokens, "tags": random_tags(random, size, scheme), **more})
    return rows


def said(examples, split, names, tags):
    """Outputs by which each word has the given tag."""
    number = {name: i for i, name in enumerate(names)}
    logits = np.random.default_rng(0).normal(0, 0.1, (len(examples.ids.values), len(names)))
    word = examples.tokens["_word"]
    for row, (start, end) in enumerate(
        zip(examples.ids.offsets[:-1], examples.ids.offsets[1:], strict=True)
    ):
        for at in range(start, end):
            if word[at]:
                logits[at, number[tags[row][word[at] - 1]]] += 9
    return {"tokens": logits.astype(np.float32)}


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_metrics_equal_seqeval(tiny, scheme):
    rows = rows_of(30, scheme=scheme)
    rows[0]["tags"] = ["O"] * len(rows[0]["tags"])
    split, names, examples = examples_of(TASK, rows, tiny)
    truth = split.column("tags")
    random = np.random.default_rng(1)
    guess = [random_tags(random, len(row), scheme) for row in truth]
    guess[1] = ["O"] * len(guess[1])
    guess[2:12] = truth[2:12]
    scores = TASK.score(said(examples, split, names, guess), examples, split, names)
    assert 0 < scores["f1"] < 1
    strict = {"mode": "strict", "scheme": IOBES} if scheme == "BIOES" else {}
    for name in ("f1", "precision", "recall"):
        wanted = getattr(sq, f"{name}_score")(truth, guess, zero_division=0, **strict)
        np.testing.assert_allclose(scores[name], wanted)
    np.testing.assert_allclose(scores["accuracy"], sq.accuracy_score(truth, guess))
    report = sq.classification_report(truth, guess, output_dict=True, zero_division=0)
    for kind in ("per", "place"):
        assert scores["per_type"][kind]["f1"] == report[kind]["f1-score"]
        assert scores["per_type"][kind]["entities"] == report[kind]["support"]


def test_without_entities(tiny):
    rows = [{"tokens": ["good", "film"], "tags": ["O", "O"]}, {"tokens": ["the"], "tags": ["O"]}]
    split, _, examples = examples_of(TASK, rows, tiny)
    for guess, accuracy in (([["O", "O"], ["O"]], 1.0), ([["B-per", "O"], ["O"]], 2 / 3)):
        scores = TASK.score(said(examples, split, NAMES, guess), examples, split, NAMES)
        assert scores["f1"] == scores["precision"] == scores["recall"] == 0.0
        assert scores["accuracy"] == accuracy
    rows[0]["tags"] = ["B-per", "I-per"]
    split, names, examples = examples_of(TASK, rows, tiny)
    nothing = said(examples, split, names, [["O", "O"], ["O"]])
    scores = TASK.score(nothing, examples, split, names)
    assert scores["f1"] == scores["recall"] == 0.0 and scores["accuracy"] == 1 / 3
    assert TASK.predictions(nothing, examples, split, names)[0]["entities"] == []


# Words that tokenizers drop or change: a control character, a zero-width space, an ideographic
# space, marks, and a word that begins with the sign of a space.
ODD = ["good", "\x01", "ﬁlm", "​", "naïve", "中文", "…", "▁the", "a", "㈱", "é", "don't", "it"]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_tags_survive_encoding(tmp_path, kind):
    """Every word has one first token, whatever the tokenizer does to it."""
    texts = [" ".join(WORDS), "naïve 中文 don't é film ﬁlm"]
    folder = write_words(tmp_path) if kind == "wordpiece" else write_trained(tmp_path, kind, texts)
    rows = [*rows_of(20), {"tokens": ODD, "tags": random_tags(np.random.default_rng(3), len(ODD))}]
    rows.append({"tokens": ["\x01", "\x02"], "tags": ["B-per", "I-per"]})
    split, names, examples = examples_of(TASK, rows, folder, 512)
    word = examples.tokens["_word"]
    for number, row in enumerate(split.column("tokens")):
        found = word[examples.ids.offsets[number] : examples.ids.offsets[number + 1]]
        assert found[found > 0].tolist() == list(range(1, len(row) + 1)), row
    tags = np.array(names)[examples.tokens["tags"][examples.tokens["tagged"] > 0]]
    assert tags.tolist() == [tag for row in split.column("tags") for tag in row]
    outputs = said(examples, split, names, split.column("tags"))
    found = TASK.predictions(outputs, examples, split, names)
    assert [row["tags"] for row in found] == split.column("tags")
    assert TASK.score(outputs, examples, split, names)["f1"] == 1.0


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_first_tokens_are_those_of_the_words(tmp_path, kind):
    """What stands from a word's first token to the next word's is the word."""
    texts = [" ".join(WORDS)] * 3
    folder = write_words(tmp_path) if kind == "wordpiece" else write_trained(tmp_path, kind, texts)
    tokenizer = load_tokenizer(folder)
    words = [row["tokens"] for row in rows_of(20, seed=5)]
    found = first_tokens(words, tokenizer, 512)
    for row, ids, number in zip(words, found["input_ids"], found["_word"], strict=True):
        starts = [i for i, n in enumerate(number) if n]
        real = [i for i, token in enumerate(ids) if token not in tokenizer.all_special_ids]
        ends = [*starts[1:], real[-1] + 1]
        pieces = [tokenizer.decode(ids[a:b]).strip() for a, b in zip(starts, ends, strict=True)]
        assert pieces == row


def test_words_that_are_cut_off_count_as_outside(tiny):
    rows = [{"tokens": ["good"] * 10, "tags": ["B-per"] * 10}]
    split, names, examples = examples_of(TASK, rows, tiny, 8)  # six words, [CLS] and [SEP]
    assert examples.truncated == 1
    outputs = said(examples, split, names, split.column("tags"))
    assert TASK.predictions(outputs, examples, split, names)[0]["tags"] == ["B-per"] * 6 + ["O"] * 4
    scores = TASK.score(outputs, examples, split, names)
    assert scores["recall"] == scores["accuracy"] == 0.6 and scores["precision"] == 1.0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_words(tmp_path_factory.mktemp("tags"))
    return SmallModel.of(TASK, "bert", "tokens", folder), folder


def three(rows):
    """With entities of one type: three tags, as the model has outputs."""
    return [{**row, "tags": [tag.replace("place", "per") for tag in row["tags"]]} for row in rows]


def test_loss_and_gradients_equal_transformers(made):
    made, folder = made
    _, names, examples = examples_of(TASK, three(rows_of(8)), folder)
    assert names == ("O", "B-per", "I-per")
    (batch,) = batches(examples)
    labels = np.where(batch["tagged"] > 0, batch["tags"], -100)
    inputs = tensors(batch, "input_ids", "attention_mask")
    made.theirs.zero_grad()
    out = made.theirs(**inputs, labels=torch.tensor(labels).long())
    out.loss.backward()
    found_loss, gradients = made.gradients(batch)
    np.testing.assert_allclose(found_loss, out.loss.item(), rtol=1e-5)
    equals(gradients, made.theirs)


@pytest.mark.parametrize("intents", [False, True])
def test_packed_equals_padded(made, intents):
    made, folder = made
    rows = three(rows_of(21))
    if intents:
        rows = [
            {**row, "tags": ["O"] * len(row["tags"]), "label": "ab"[i % 2]}
            for i, row in enumerate(rows)
        ]
    split, names, examples = examples_of(TASK, rows, folder)
    assert len(names) == 3
    padded, packed = (made.sums(batches(examples, packed=is_packed)) for is_packed in (False, True))
    np.testing.assert_allclose(packed, padded, rtol=1e-5)
    found = [made.outputs(examples, packed) for packed in (False, True)]
    np.testing.assert_allclose(found[1]["tokens"], found[0]["tokens"], atol=1e-4)
    scores = [TASK.score(each, examples, split, names) for each in found]
    assert scores[0]["f1"] == scores[1]["f1"]
    np.testing.assert_allclose([score["loss"] for score in scores], padded, rtol=1e-5)


def test_intents_by_hand(tiny):
    """Σ over rows of −log p(intent | mean of outputs) and the mean of −log p(tag) of its words."""
    rows = [{**row, "label": "ask" if i % 2 else "tell"} for i, row in enumerate(rows_of(5))]
    split, names, examples = examples_of(TASK, rows, tiny)
    assert names[-2:] == (f"{INTENT}ask", f"{INTENT}tell") and names[0] == "O"
    logits = np.random.default_rng(0).normal(size=(len(examples.ids.values), len(names)))
    losses, right = [], []
    for number, row in enumerate(rows):
        start, end = examples.ids.offsets[number : number + 2]
        own, word = torch.tensor(logits[start:end]), examples.tokens["_word"][start:end]
        wanted = torch.tensor([names.index(tag) for tag in row["tags"]])
        tags = own[torch.tensor(word) > 0][:, :-2]
        intent = own[:, -2:].mean(0)
        asked = ("ask", "tell").index(row["label"])
        entropy = torch.nn.functional.cross_entropy
        losses.append(entropy(tags, wanted) + entropy(intent, torch.tensor(asked)))
        right.append(int(intent.argmax()) == asked)
    scores = TASK.score({"tokens": logits}, examples, split, names)
    np.testing.assert_allclose(scores["loss"], np.mean(losses), rtol=1e-6)
    assert scores["intent_accuracy"] == np.mean(right)
    ((planned, batch),) = loader(examples, 8, packed=True)
    index, _ = token_index(examples, planned)
    found = TASK.loss(lambda _: logits[index].astype(np.float32), batch, True)
    np.testing.assert_allclose(found.total / found.weight, np.mean(losses), rtol=1e-5)
    predicted = TASK.predictions({"tokens": logits}, examples, split, names)
    assert [row["label"] == r["label"] for row, r in zip(predicted, rows, strict=True)] == right


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("", "IOB2"),
        ("O", "IOB2"),
        ("O B", "IOB2"),
        ("O B-a I-a", "IOB2"),
        ("O I-a E-a", "IOE2"),
        ("O E-a", "IOE2"),
        ("O B-a E-a", "BIOES"),
        ("S-a", "BIOES"),
        ("L-a B-a", "BILOU"),
        ("U-a", "BILOU"),
        ("NN IN SYM LS EX -LRB-", "none"),  # of the Penn Treebank
        ("O NOUN INTJ", "none"),
    ],
)
def test_schemes_by_prefixes(tags, scheme):
    assert scheme_of(set(tags.split())) == scheme


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("O B-a I-a O", "IOB2"),
        ("B-a B-a I-a B-b", "IOB2"),
        ("S-a O B-a E-a", "BIOES"),
        ("B-a I-a E-a S-b", "BIOES"),
        ("U-a O B-a L-a", "BILOU"),
        ("I-a E-a E-a I-b E-b", "IOE2"),
        ("I-a B-a I-a I-b O I-b", "IOB1"),
        ("I-a E-a I-a I-b O I-b", "IOE1"),
        ("B-x-y I-x-y", "IOB2"),
        ("O", "IOB2"),
        ("NN -LRB- VB", "none"),
    ],
)
def test_sound_tags(tags, scheme):
    check_tags(tags.split(), scheme)
    if scheme[-1] != "1":
        check_tags(tags.split(), "auto")


@pytest.mark.parametrize(
    ("tags", "scheme", "message"),
    [
        ("I-a", "auto", r"tag 1, 'I-a', does not go on from 'O' \(read as IOB2; task.scheme names"),
        ("B-a I-b", "IOB2", "tag 2, 'I-b', does not go on from 'B-a'"),
        ("B-a O I-a", "IOB2", "tag 3, 'I-a', does not go on from 'O'"),
        ("B-a E-a I-a", "auto", "tag 3, 'I-a', does not go on from 'E-a'"),
        ("S-a E-a", "BIOES", "tag 2, 'E-a', does not go on from 'S-a'"),
        ("B-a O S-b", "auto", "comes before the entity of 'B-a' ends"),
        ("B-a E-a B-b", "auto", "tag 4, 'O', comes before the entity of 'B-b' ends"),
        ("B-a U-a", "auto", "tag 2, 'U-a', comes before the entity of 'B-a' ends"),
        ("B-a L-b", "BILOU", "tag 2, 'L-b', does not go on from 'B-a'"),
        ("I-a E-b", "IOE2", "tag 2, 'E-b', comes before the entity of 'I-a' ends"),
        ("I-a O B-a", "IOB1", "tag 'B-a' is not between two entities of a type"),
        ("I-a E-a", "IOE1", "tag 'E-a' is not between two entities of a type"),
        ("per", "IOB2", "tag 1, 'per', is not O"),
        ("B-", "auto", "tag 1, 'B-', is not O"),
        ("B I O", "auto", "tag 1, 'B', is not O"),
        ("X-a", "BIOES", "tag 1, 'X-a', is not O"),
        ("BI-a", "IOB2", "tag 1, 'BI-a', is not O"),
        ("o B-a", "auto", "tag 1, 'o', is not O"),
        ("S-a", "IOB2", "tag 1, 'S-a', is not O, or B-, I- and a type"),
    ],
)
def test_unsound_tags_are_named(tags, scheme, message):
    with pytest.raises(ValueError, match=message):
        check_tags(tags.split(), scheme)


def test_rows_are_checked(tiny):
    with pytest.raises(UserError, match="row 2: 2 tokens and 1 tags"):
        examples_of(
            TASK, [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a", "b"], "tags": ["O"]}], tiny
        )
    for cell, message in (
        ("[0, 1]", "must hold words, not 0"),
        ("[0 1]", "must be a list that can be read"),
        ("[O, B-per]", "must be a list that can be read"),
        ("{O,B-per}", "must be a list that can be read"),
    ):
        with pytest.raises(UserError, match=f"row 1: field 'tags' {message}"):
            examples_of(TASK, [{"tokens": "a b", "tags": cell}], tiny)
    with pytest.raises(UserError, match="row 1: tag 1, 'I-per', does not go on"):
        examples_of(TASK, [{"tokens": ["a"], "tags": ["I-per"]}], tiny)
    rows = [{"tokens": ["a"], "tags": [tag]} for tag in ("B-per", "NN")]
    with pytest.raises(UserError, match="tag 'NN' is not of the scheme IOB2"):
        examples_of(TASK, rows, tiny)
    with pytest.raises(UserError, match="task.scheme='BIO' must be one of auto, IOB1"):
        TokenClassification(scheme="BIO")
    with pytest.raises(UserError, match="tag 'B-per' is not among task.labels"):
        examples_of(
            TokenClassification(labels=("O",)), [{"tokens": ["a"], "tags": ["B-per"]}], tiny
        )
