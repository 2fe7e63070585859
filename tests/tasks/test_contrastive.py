"""Embeddings of texts: against sentence-transformers' loss, and ranks by hand."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
import transformers
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from ftjax import pretrained
from ftjax.config import default_config
from ftjax.data.encode import Examples, ragged
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.parallel.mesh import make_mesh
from ftjax.setup.model import place_model
from ftjax.tasks.contrastive import Contrastive
from tests.compiler import OPTIONS
from tests.conftest import WORDS, build
from tests.tasks.small_models import (
    SmallModel,
    batches,
    examples_of,
    most_places,
    split_of,
)

pytestmark = pytest.mark.usefixtures("first_device")

TASK = Contrastive(pooling="mean")


def rows_of(count, names=("text", "text_pair"), seed=0):
    random = np.random.default_rng(seed)
    return [
        {name: " ".join(random.choice(WORDS, int(random.integers(2, 12)))) for name in names}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def made(shallow):
    model = build(shallow, {"name": "full"}, head={"head": "embedding", "pooling": "mean"})
    mesh = make_mesh(devices=jax.devices()[:1])
    params, absent = pretrained.load(shallow, model, mesh, jax.random.key(0))
    assert not absent
    theirs = transformers.BertModel.from_pretrained(shallow).eval()
    return SmallModel(TASK, model, params, theirs), load_tokenizer(shallow), shallow


def means(model, tokenizer, texts):
    """Means over tokens of transformers' model."""
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
    return (hidden * mask).sum(1) / mask.sum(1)


@pytest.mark.parametrize(
    "names", [("text", "text_pair"), ("text", "text_pair", "negative"), ("text",)]
)
def test_loss_and_gradient_equal_sentence_transformers(made, names):
    """Also where a batch has places without an example, which are no negatives."""
    made, tokenizer, folder = made
    rows = rows_of(6, names)
    _, _, examples = examples_of(TASK, rows, folder)
    assert examples.group == max(len(names), 2)
    (batch,) = batches(examples, 8)
    assert batch["weights"].sum() == 6
    twice = names if len(names) > 1 else ("text", "text")  # SimCSE
    parts = [means(made.theirs, tokenizer, [row[name] for row in rows]) for name in twice]
    found = made.outputs(examples)
    for i, part in enumerate(parts):
        wanted = torch.nn.functional.normalize(part).detach().numpy()
        np.testing.assert_allclose(found[:, i], wanted, atol=1e-5)
    loss = MultipleNegativesRankingLoss(None, scale=20.0).compute_loss_from_embeddings(parts, None)
    word = made.theirs.embeddings.word_embeddings.weight
    (wanted,) = torch.autograd.grad(loss, [word])

    def mean(params):
        found = TASK.loss(partial(made.tuned.apply, params), batch, True)
        return found.total / found.weight

    value, grads = jax.jit(jax.value_and_grad(mean), compiler_options=OPTIONS)(made.params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    assert all(np.isfinite(np.asarray(grad)).all() for grad in grads.values())
    found = np.asarray(grads["embeddings/word/embedding"])
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4 * np.abs(wanted.numpy()).max())


@pytest.mark.parametrize("texts", [2, 3])
@pytest.mark.parametrize("empty", [0, 2])
@pytest.mark.parametrize("symmetric", [False, True])
def test_symmetric_loss_and_scale(symmetric, empty, texts):
    """Rows without an example are no negatives, in either direction; texts that do not belong
    are so in one."""
    random, rows = np.random.default_rng(0), 5 + empty
    embedded = random.normal(size=(rows, texts, 8)).astype(np.float32)
    batch = {
        "input_ids": np.zeros((rows, texts, 3), int),
        "attention_mask": np.ones((rows, texts, 3), int),
        "weights": (np.arange(rows) < 5).astype(np.float32),
    }
    task = Contrastive(pooling="mean", scale=5.0, symmetric=symmetric)
    found = task.loss(lambda _: embedded.reshape(-1, 8), batch, True)
    ways = ("query_to_doc", "doc_to_query") if symmetric else ("query_to_doc",)
    kind = {"directions": ways, "partition_mode": "per_direction"}
    theirs = MultipleNegativesRankingLoss(None, scale=5.0, **kind)
    parts = [torch.tensor(embedded[:5, i]) for i in range(texts)]
    wanted = theirs.compute_loss_from_embeddings(parts, None).item()
    np.testing.assert_allclose(found.total / found.weight, wanted, rtol=1e-4)


def test_two_readings_differ_by_dropout(made):
    made, _, folder = made
    _, _, examples = examples_of(TASK, rows_of(4, ("text",)), folder)
    (batch,) = batches(examples, 4)
    np.testing.assert_array_equal(batch["input_ids"][:, 0], batch["input_ids"][:, 1])

    def run(key):
        return TASK.outputs(partial(made.tuned.apply, made.params, key=key), batch)

    found = np.asarray(jax.jit(run, compiler_options=OPTIONS)(jax.random.key(0)))
    assert (np.abs(found[:, 0] - found[:, 1]).max(-1) > 1e-3).all()


def test_ranks_by_hand():
    """Of three texts one finds its partner first, one second, one third."""
    first = np.array([[1.0, 0], [0.6, 0.8], [0, 1]])
    second = np.array([[1.0, 0], [0.8, 0.6], [0.6, -0.8]])
    # cosines: 1 .8 .6 | .6 .96 -.28 | 0 .6 -.8 : ranks 1, 1, 3
    outputs = np.stack([first, second], 1).astype(np.float32)
    examples, split = Examples(ragged([[1]] * 6), group=2), split_of(TASK, rows_of(3))
    scores = TASK.score(outputs, examples, split, ())
    np.testing.assert_allclose(scores["accuracy"], 2 / 3)
    np.testing.assert_allclose(scores["reciprocal_rank"], (1 + 1 + 1 / 3) / 3)
    cosines = torch.tensor(first @ second.T) * 20
    wanted = torch.nn.functional.cross_entropy(cosines, torch.arange(3)).item()
    np.testing.assert_allclose(scores["loss"], wanted, rtol=1e-5)
    # squares of distances of the first: 0.8, 2, 0.4, each of two pairs
    apart = np.log(np.exp([-2 * 0.8, -2 * 2, -2 * 0.4]).mean())
    np.testing.assert_allclose(scores["uniformity"], apart, rtol=1e-5)
    labelled = Examples(ragged([[1]] * 6), arrays={"_label": np.array([3.0, 2, 1])}, group=2)
    split = split_of(TASK, [{**row, "label": 1} for row in rows_of(3)])
    assert TASK.score(outputs, labelled, split, ())["spearman"] == pytest.approx(1.0)
    found = TASK.predictions(outputs, examples, None, ())
    assert [row["cosine"] for row in found] == [1.0, 0.96, -0.8]


@pytest.mark.parametrize("scale", [1.0, 2000.0])
def test_losses_of_any_scale_are_numbers(scale):
    """Also where e to the power of it is none in single or double precision."""
    random, split = np.random.default_rng(1), split_of(TASK, rows_of(5))
    outputs = random.normal(size=(5, 2, 3)).astype(np.float32)
    outputs /= np.linalg.norm(outputs, axis=-1, keepdims=True)
    task = Contrastive(pooling="mean", scale=scale)
    found = task.score(outputs, Examples(ragged([[1]] * 10), group=2), split, ())
    cosines = torch.tensor(scale * outputs[:, 0] @ outputs[:, 1].T)
    wanted = torch.nn.functional.cross_entropy(cosines, torch.arange(5)).item()
    np.testing.assert_allclose(found["loss"], wanted, rtol=1e-4)


def test_predictions_have_six_places_and_need_no_label():
    outputs = np.random.default_rng(2).normal(size=(3, 2, 5)).astype(np.float32)
    found = TASK.predictions(outputs, None, None, ())
    assert most_places(found) == 6 and most_places([row["cosine"] for row in found]) == 6
    for row, (first, second) in zip(found, outputs.astype(float), strict=True):
        np.testing.assert_allclose(row["embedding"], first, atol=5e-7)
        np.testing.assert_allclose(row["cosine"], first @ second, atol=5e-6)
    rows = [{**row, "label": 0.5} for row in rows_of(2)]
    predicted = split_of(TASK, rows, TASK.schema.to_predict())
    assert predicted.rows.column_names == ["text", "text_pair", "row"]


@pytest.mark.parametrize("size", [1e6, 1.0, 1.1e-9])
def test_embeddings_have_length_1(size):
    """Down to outputs of a billionth; what is 0, as where there is no example, stays so."""
    batch = dict.fromkeys(("input_ids", "attention_mask"), np.zeros((1, 2, 3), int))
    outputs = np.array([[0.6, -0.8], [0.0, 0.0]], np.float32) * np.float32(size)
    found = TASK.outputs(lambda _: outputs, batch)
    np.testing.assert_allclose(found, [[[0.6, -0.8], [0.0, 0.0]]], rtol=1e-5)


def test_one_row_alone_has_no_other_texts():
    split, outputs = split_of(TASK, rows_of(1)), np.array([[[1.0, 0], [0, 1]]], np.float32)
    scores = TASK.score(outputs, Examples(ragged([[1]] * 2), group=2), split, ())
    assert scores == {
        "loss": 0.0,
        "uniformity": 0.0,
        "accuracy": 1.0,
        "reciprocal_rank": 1.0,
        "examples": 1,
    }


def test_rows_are_not_packed(shallow):
    """Each has two texts, of which one part of a row is none."""
    config = default_config("full", "contrastive")
    config.model.path, config.data.batching, config.data.max_length = str(shallow), "pack", 32
    with pytest.raises(UserError, match="data.batching=pack is not for task.name=contrastive"):
        place_model(config, ())


def test_many_texts_are_ranked_in_parts():
    random = np.random.default_rng(0)
    outputs = random.normal(size=(1500, 2, 4)).astype(np.float32)
    outputs[:, 1] += 2 * outputs[:, 0]
    outputs /= np.linalg.norm(outputs, axis=-1, keepdims=True)
    split = split_of(TASK, [{"text": "a", "text_pair": f"{i}"} for i in range(1500)])
    scores = TASK.score(outputs, Examples(ragged([[1]] * 3000), group=2), split, ())
    sims = outputs[:, 0] @ outputs[:, 1].T
    rank = (sims > np.diag(sims)[:, None]).sum(1) + 1
    np.testing.assert_allclose(scores["reciprocal_rank"], (1 / rank).mean(), atol=1e-3)
    wanted = torch.nn.functional.cross_entropy(torch.tensor(20 * sims), torch.arange(1500))
    np.testing.assert_allclose(scores["loss"], wanted.item(), rtol=1e-4)
    # Wang and Isola's own lines
    near = torch.pdist(torch.tensor(outputs[:, 0]), p=2).pow(2).mul(-2).exp().mean().log()
    np.testing.assert_allclose(scores["uniformity"], near.item(), rtol=1e-4)


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_texts_in_one_place_are_not_found(value):
    """As of an encoder that has collapsed, or has no numbers; one text twice is no other."""
    outputs = np.full((4, 2, 1), value, np.float32)
    rows = [{"text": "a", "text_pair": name} for name in ("b", "c", "d", "d")]
    scores = TASK.score(outputs, Examples(ragged([[1]] * 8), group=2), split_of(TASK, rows), ())
    assert scores["accuracy"] == 0.0
    np.testing.assert_allclose(scores["reciprocal_rank"], (1 / 4 + 1 / 4 + 1 / 3 + 1 / 3) / 4)
    outputs[:, :, 0] = [[1, -1], [1, -1], [1, 1], [1, 1]]
    scores = TASK.score(outputs, Examples(ragged([[1]] * 8), group=2), split_of(TASK, rows), ())
    np.testing.assert_allclose(scores["accuracy"], 1 / 2)


def test_rows_of_one_text_are_not_their_own_partners(shallow):
    """Without dropout both readings are one: nothing is scored that is 1 by construction."""
    rows = [{"text": row["text"], "label": 1.0} for row in rows_of(5)]
    split, names, examples = examples_of(TASK, rows, shallow)
    one = np.random.default_rng(0).normal(size=(5, 1, 4)).astype(np.float32)
    outputs = np.repeat(one / np.linalg.norm(one, axis=-1, keepdims=True), 2, 1)
    scores = TASK.score(outputs, examples, split, names)
    assert set(scores) == {"loss", "uniformity", "examples"}
    # a text that does not belong is no partner either
    _, _, examples = examples_of(TASK, [{"text": "good", "negative": "bad"}] * 2, shallow)
    texts = [examples.ids[i].tolist() for i in range(3)]
    assert examples.group == 3 and texts[0] == texts[1] != texts[2]


def test_labels_are_kept_for_scores_alone(shallow):
    rows = [{**row, "label": i / 3} for i, row in enumerate(rows_of(4))]
    _, _, examples = examples_of(TASK, rows, shallow)
    assert "_label" not in batches(examples)[0]
    np.testing.assert_allclose(examples.arrays["_label"], [0, 1 / 3, 2 / 3, 1])
    assert split_of(TASK, rows_of(2)).rows.column_names == ["text", "text_pair", "row"]
