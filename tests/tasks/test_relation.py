"""Relations of two entities: where they are by hand, what is pooled by numpy, the official F1."""

import jax
import numpy as np
import pytest

from ftjax import pretrained
from ftjax.errors import UserError
from ftjax.formats.export import write_export
from ftjax.formats.folder import load_tokenizer
from ftjax.parallel.mesh import make_mesh
from ftjax.tasks.relation import Relation, shown_entities
from tests.conftest import CONFIG, WORDS, build
from tests.tasks.small_models import SmallModel, batches, examples_of, split_of

TASK = Relation()


def test_entities_are_shown_by_hand():
    text = "the <e1>bad actor</e1> was in <e2>film</e2>."
    for markers, wanted in (
        ("signs", "the @ bad actor @ was in # film # ."),
        ("tags", "the <e1> bad actor </e1> was in <e2> film </e2> ."),
        ("none", "the bad actor was in film ."),
    ):
        shown, spans = shown_entities(text, markers)
        assert shown == wanted
        assert {n: shown[a:b] for n, (a, b) in spans.items()} == {1: "bad actor", 2: "film"}
    shown, spans = shown_entities("<e2>film</e2> of <e1> the actor </e1>", "none")
    assert shown == "film of the actor" and spans == {2: (0, 4), 1: (8, 17)}
    shown, spans = shown_entities("<e1>film</e1><e2>plot</e2>", "signs")
    assert shown == "@ film @ # plot #" and spans == {1: (2, 6), 2: (11, 15)}
    chinese, spans = shown_entities("他是<e1>老鼠</e1>的<e2>笼子</e2>", "none")
    assert [chinese[a:b] for a, b in (spans[1], spans[2])] == ["老鼠", "笼子"]


@pytest.mark.parametrize("markers", ["signs", "tags", "none"])
def test_tokens_of_entities_by_hand(shallow, markers):
    rows = [
        {"text": "the <e1>bad actor</e1> was <e2>film</e2>", "label": "a"},
        {"text": "<e2>it</e2> <e1>was one</e1>", "label": "b"},
    ]
    _, _, examples = examples_of(Relation(markers=markers), rows, shallow)
    tokenizer, found = load_tokenizer(shallow), []
    for number in range(2):
        ids = examples.ids[number]
        own = examples.tokens["entities"][slice(*examples.ids.offsets[number : number + 2])]
        found.append([tokenizer.convert_ids_to_tokens(ids[own == n].tolist()) for n in (1, 2)])
    assert found == [[["bad", "actor"], ["film"]], [["was", "one"], ["it"]]]


def rows_of(count, kinds=("x(e1,e2)", "x(e2,e1)", "Other"), seed=0):
    random, rows = np.random.default_rng(seed), []
    for i in range(count):
        words = [str(word) for word in random.choice(WORDS, int(random.integers(4, 16)))]
        a, b = sorted(random.choice(len(words), 2, replace=False))
        first, second = ("e1", "e2") if random.random() < 0.5 else ("e2", "e1")
        words[a] = f"<{first}>{words[a]} the</{first}>"
        words[b] = f"<{second}>{words[b]}</{second}>"
        rows.append({"text": " ".join(words), "label": kinds[i % len(kinds)]})
    return rows


@pytest.fixture(scope="module")
def model(shallow):
    head = {"head": "classification", "labels": 3, "pooling": "entities"}
    made = build(shallow, {"name": "full"}, head=head)
    mesh = make_mesh(devices=jax.devices()[:1])
    params, absent = pretrained.load(shallow, made, mesh, jax.random.key(0))
    assert set(absent) == {"classifier/kernel", "classifier/bias"}
    assert params["classifier/kernel"].shape == (3 * CONFIG["hidden_size"], 3)
    return SmallModel(TASK, made, params, None)


def test_pooled_entities_equal_numpy(model, shallow):
    _, _, examples = examples_of(TASK, rows_of(8), shallow)
    (batch,) = batches(examples)
    plain = build(shallow, {"name": "full"}, head={"head": None})
    below = {path: leaf for path, leaf in model.params.items() if path in plain.shapes}
    hidden = np.asarray(plain.apply(below, batch))
    wanted = []
    for row, entities in zip(hidden, batch["entities"], strict=True):
        pooled = [row[entities == 1].mean(0), row[entities == 2].mean(0), row[0]]
        kernel = np.asarray(model.params["classifier/kernel"])
        wanted.append(np.concatenate(pooled) @ kernel + np.asarray(model.params["classifier/bias"]))
    found = np.asarray(model.tuned.apply(model.params, batch))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_an_entity_that_is_cut_off_is_zero(model, shallow):
    rows = [{"text": f"<e1>it</e1> {'film ' * 20} <e2>plot</e2>", "label": "a"}, *rows_of(2)]
    _, _, examples = examples_of(TASK, rows, shallow, 12)
    assert examples.truncated >= 1 and 2 not in examples.tokens["entities"][:12]
    pooled = model.tuned.apply(model.params, batches(examples, 3)[0], features_only=True)
    width = CONFIG["hidden_size"]
    assert not np.asarray(pooled)[:, width : 2 * width].all(1).all()
    assert np.isfinite(np.asarray(pooled)).all()


def test_packed_equals_padded(model, shallow):
    _, _, examples = examples_of(TASK, rows_of(21), shallow)
    packed, padded = (
        model.sums(batches(examples, packed=is_packed)) for is_packed in (True, False)
    )
    np.testing.assert_allclose(packed, padded, rtol=1e-5)
    found = [model.outputs(examples, packed) for packed in (False, True)]
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_f1_of_relations_by_hand():
    names = ("Other", "a(e1,e2)", "a(e2,e1)", "b(e1,e2)", "b(e2,e1)")
    #       right  direction  right  Other→a  b→Other  right  a→b   Other
    truth = [1, 1, 2, 0, 3, 4, 2, 0]
    guess = [1, 2, 2, 1, 0, 4, 4, 0]
    # a: 2 right; 4 there, 4 found. b: 1 right; 2 there, 2 found.
    wanted = (2 * (2 / 4) * (2 / 4) / (2 / 4 + 2 / 4) + 2 * (1 / 2) * (1 / 2) / (1 / 2 + 1 / 2)) / 2
    found = TASK.metrics(np.eye(5)[guess], np.array(truth), names)
    np.testing.assert_allclose(found["f1_relations"], wanted)
    assert found["accuracy"] == 4 / 8


def test_f1_of_no_relations_is_0():
    """Where none is there, and none is found."""
    found = TASK.metrics(np.eye(2)[[0, 0]], np.array([0, 0]), ("Other", "a(e1,e2)"))
    assert found["f1_relations"] == 0.0 and found["accuracy"] == 1.0
    assert found["averages"]["f1_relations"] == "macro"


def test_heads_pool_entities_or_what_is_asked():
    names = ("Other", "a(e1,e2)", "a(e2,e1)")
    wanted = {"head": "classification", "labels": 3}
    assert TASK.head(names, None) == {**wanted, "pooling": "entities"}
    assert Relation(pooling="mean").head(names, None) == {**wanted, "pooling": "mean"}


def test_rows_to_predict_need_no_label():
    row = {"text": "<e1>it</e1> was <e2>film</e2>"}
    assert len(split_of(TASK, [row], TASK.schema.to_predict()).rows) == 1
    with pytest.raises(UserError, match="label"):
        split_of(TASK, [row])


def official(truth, guess, names, negative):
    """As SemEval-2010's scorer counts: pairs of keys without and with directions."""
    kind = {name: name.split("(")[0] for name in names}
    scores = []
    for one in sorted(set(kind.values()) - {negative}):
        pairs = list(zip(truth, guess, strict=True))
        right = sum(a == b and kind[a] == one for a, b in pairs)
        found = sum(kind[b] == one for _, b in pairs)
        there = sum(kind[a] == one for a, _ in pairs)
        precision, recall = right / found if found else 0, right / there if there else 0
        total = precision + recall
        scores.append(2 * precision * recall / total if total else 0)
    return sum(scores) / len(scores)


def test_f1_of_relations_equals_the_official_count():
    kinds = ("Cause-Effect", "Content-Container", "Message-Topic")
    names = [f"{kind}{way}" for kind in kinds for way in ("(e1,e2)", "(e2,e1)")] + ["Other"]
    random = np.random.default_rng(0)
    for _ in range(20):
        truth, guess = random.integers(0, 7, (2, 30))
        guess = np.where(random.random(30) < 0.5, truth, guess)
        found = TASK.metrics(np.eye(7)[guess], truth, names)["f1_relations"]
        wanted = official([names[i] for i in truth], [names[i] for i in guess], names, "Other")
        np.testing.assert_allclose(found, wanted)


@pytest.mark.parametrize(
    "text", ["no entities", "<e1>one</e1> alone", "<e1>open <e2>two</e2>", "<e1>a</e1> <e1>b</e1>"]
)
def test_texts_without_two_entities_are_named(shallow, text):
    with pytest.raises(UserError, match="row 2: the text must have two entities"):
        examples_of(TASK, [*rows_of(1), {"text": text, "label": "a"}], shallow)


@pytest.mark.parametrize("kind", ["hf", "peft", "adapterhub"])
def test_export_is_refused(shallow, tmp_path, kind):
    """No model of these libraries pools entities."""
    name = "full" if kind == "hf" else "lora" if kind == "peft" else "pfeiffer"
    head = {"head": "classification", "labels": 3, "pooling": "entities"}
    made = build(shallow, {"name": name}, head=head)
    params = {path: np.zeros(leaf.shape, np.float32) for path, leaf in made.shapes.items()}
    with pytest.raises(UserError, match="task.pooling=entities"):
        write_export(kind, tmp_path / "out", shallow, made, params, ("a", "b", "c"))
    assert not list(tmp_path.iterdir())
