"""A language model's loss without logits, against the loss of its logits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.models import language_head
from ftjax.parallel.mesh import logical_axes, make_mesh
from tests.covering import covering, product
from tests.forecast.abstract import LLAMA
from tests.methods.bases import ALIKE, WITHIN
from tests.models import random_models

LENGTH = 11


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(language_head, "CHUNK", 4 * 64 * 3)  # of which the last is not full


def make_batch(case, smoothing=0.0):
    random = np.random.default_rng(0)
    batch = random_models.inputs(case, rows=4, length=LENGTH)
    batch["targets"] = random.integers(0, 64, (4, LENGTH)).astype(np.int32)
    batch["target_weights"] = random.integers(0, 3, (4, LENGTH)).astype(np.float32)
    return batch | ({"target_smoothing": smoothing} if smoothing else {})


def with_gradients(loss, params):
    """Gradients, and what the loss gives beside itself."""
    return random_models.quick(jax.grad(loss, has_aux=True))(params)


def found(model, batch):
    """A function of parameters: the loss, and all scores."""

    def loss(params):
        scores = model.apply(params, batch)
        return scores.loss, scores

    return loss


def wanted(model, batch):
    """The same from logits."""
    targets, weights = batch["targets"], batch["target_weights"]
    inputs = {name: x for name, x in batch.items() if not name.startswith("target")}

    def loss(params):
        logits = model.apply(params, inputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        hits = (logits.argmax(-1) == targets) * weights
        one_hot = jax.nn.one_hot(targets, logits.shape[-1])
        smooth = optax.smooth_labels(one_hot, batch.get("target_smoothing", 0.0))
        total = (optax.softmax_cross_entropy(logits, smooth) * weights).sum()
        return total, (total, weights.sum(), jnp.stack([losses * weights, hits], -1))

    return loss


# With a head; tied and capped.
SMOOTHED = [(case, smoothing) for case in ("llama", "gemma2") for smoothing in (0.0, 0.1)]


@pytest.mark.parametrize(("case", "smoothing"), product(SMOOTHED, covering(SMOOTHED)))
def test_equals_the_loss_of_logits(case, smoothing):
    model, batch = random_models.build(case, "causal_lm"), make_batch(case, smoothing)
    params = random_models.parameters(model)
    grads, scores = with_gradients(found(model, batch), params)
    expected, values = with_gradients(wanted(model, batch), params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), tuple(scores), values)
    largest = max(np.abs(grad).max() for grad in expected.values())
    for path, grad in expected.items():
        assert random_models.difference(grads[path], grad, largest) < 1e-4, path


# Selections compute what the model does; the first needs a pattern, the second biases; the last
# has kernels that no gradient is of.
OTHERS = ("regex", "bitfit", "qlora")
TRAINS = [m for m in methods.METHODS if methods.find(m).trains and m not in OTHERS]


CASES = [(method, layout) for method in TRAINS for layout in ("padded", "packed")]


FEW = covering([case for case in CASES if case[0] not in ALIKE | WITHIN])


@pytest.mark.parametrize(("method", "layout"), product(CASES, FEW))
def test_under_every_method(method, layout):
    packed = layout == "packed"
    small = {"galore": {"rank": 8}, "compacter": {"reduction": 8}, "compacter_pp": {"reduction": 8}}
    made_of = methods.create({"name": method, **small.get(method, {})})
    model = build_tuned(LLAMA, made_of, {}, {"head": "causal_lm"})
    random = np.random.default_rng(0)
    params = random_models.parameters(model)
    rows = np.sort(random.integers(1, 3, (4, LENGTH)))
    batch = {"segment_ids": rows} if packed else {"attention_mask": (rows < 2).astype(np.int32)}
    batch["input_ids"] = random.integers(0, 256, (4, LENGTH)).astype(np.int32)
    if packed:  # examples begin where their number does
        batch["position_ids"] = np.arange(LENGTH) - (rows > 1) * (rows == 1).sum(1, keepdims=True)
        batch["starts"] = np.stack([0 * rows[:, 0], (rows == 1).sum(1) % LENGTH], 1)
    batch["targets"] = random.integers(0, 256, (4, LENGTH)).astype(np.int32)
    batch["target_weights"] = random.integers(0, 3, (4, LENGTH)).astype(np.float32)
    batch["target_smoothing"] = 0.1
    try:
        values = random_models.quick(wanted(model, batch))(params)[1]
    except UserError as error:
        assert packed and "packed" in str(error)
        return
    scores = with_gradients(found(model, batch), params)[1]  # training has a rule of its own
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), tuple(scores), values)


MESHES = [
    (shape, smoothing) for shape in ((1, 4, 1), (1, 2, 2), (2, 2, 1)) for smoothing in (0.0, 0.2)
]


@pytest.mark.parametrize(("shape", "smoothing"), product(MESHES, covering(MESHES)))
def test_over_a_mesh_it_equals_one_device(shape, smoothing):
    """By parts of the vocabulary's kernel, and by the whole of it."""
    model = random_models.build("llama", "causal_lm", gather_head=not smoothing)
    batch = make_batch("llama", smoothing)
    params = random_models.parameters(model)
    expected, values = with_gradients(wanted(model, batch), params)
    with logical_axes(make_mesh(*shape, jax.devices()[:4])):
        grads, scores = with_gradients(found(model, batch), params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), tuple(scores), values)
    for path, grad in expected.items():
        assert random_models.difference(grads[path], grad, 1.0) < 1e-4, path


def test_logits_exist_in_chunks_only():
    """Of positions; and a frozen kernel's gradient not at all."""
    x, kernel = jnp.ones((4, LENGTH, 8)), jnp.ones((8, 64))
    targets = jnp.zeros((4, LENGTH), jnp.int32)

    def loss(x):
        return language_head.score(x, kernel, targets, targets).loss

    text = str(jax.make_jaxpr(jax.grad(loss))(x))
    assert "f32[4,3,64]" in text  # a chunk of three positions
    assert f"f32[4,{LENGTH},64]" not in text and "f32[8,64] = add" not in text


@pytest.mark.parametrize(("platform", "chunks"), [("cpu", 4), ("gpu", 2)])
def test_chunks_are_as_large_as_a_platform_needs(platform, chunks, monkeypatch):
    """Of eleven positions of four rows three at a time, or six, which are 24 tokens."""
    monkeypatch.setattr(language_head, "TOKENS", {"gpu": 23})
    model = random_models.build("llama", "causal_lm", platform=platform, attention="xla")
    batch = make_batch("llama")

    def loss(params):
        return model.apply(params, batch).loss

    text = str(jax.make_jaxpr(jax.grad(loss))(random_models.parameters(model)))
    assert f"length={chunks}" in text and f"length={6 - chunks}" not in text
