"""GaLore's update equals algorithm 2 of its paper, worked in numpy."""

import jax
import numpy as np
import optax
import pytest
import torch

from ftjax.config import default_config
from ftjax.errors import UserError
from ftjax.methods.galore import Galore, leading
from ftjax.testing import build
from ftjax.training.optimizers import make_optimizer

RANK, EVERY, SCALE, RATE, DECAY = 3, 2, 0.25, 0.1, 0.01
B1, B2, EPSILON = 0.9, 0.999, 1e-8


def numpy_galore(weight: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    """Adam on PᵀG (or GP), P of a gradient every `EVERY` steps; decay of the weight itself."""
    first = second = 0.0
    for t, grad in enumerate(grads):
        wide = grad.shape[0] <= grad.shape[1]
        if t % EVERY == 0:
            u, _, vt = np.linalg.svd(grad)
            basis = u[:, :RANK] if wide else vt[:RANK].T
            basis = basis * np.sign(basis[np.abs(basis).argmax(0), range(RANK)])
        low = basis.T @ grad if wide else grad @ basis
        first, second = B1 * first + (1 - B1) * low, B2 * second + (1 - B2) * low**2
        step = first / (1 - B1 ** (t + 1))
        step = step / (np.sqrt(second / (1 - B2 ** (t + 1))) + EPSILON)
        whole = SCALE * (basis @ step if wide else step @ basis.T)
        weight = weight - RATE * (whole + DECAY * weight)
    return weight


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_updates_equal_the_papers(shape):
    random = np.random.default_rng(0)
    weights = random.normal(size=(2, *shape)).astype(np.float32)  # of two scanned layers
    grads = random.normal(size=(5, 2, *shape)).astype(np.float32)
    core = optax.scale_by_adam(B1, B2, EPSILON)
    rest = optax.chain(optax.add_decayed_weights(DECAY), optax.scale_by_learning_rate(RATE))
    method = Galore(rank=RANK, every=EVERY, scale=SCALE)
    params, state = {"x/kernel": weights}, None
    for step, grad in enumerate(grads):
        optimizer = method.at_step(step, None).optimizer(None, "projected", core, rest, len(grads))
        state = optimizer.init(params) if state is None else state
        updates, state = jax.jit(optimizer.update)({"x/kernel": grad}, state, params)
        params = optax.apply_updates(params, updates)
    for layer in range(2):
        wanted = numpy_galore(weights[layer].astype(np.float64), list(grads[:, layer]))
        np.testing.assert_allclose(params["x/kernel"][layer], wanted, atol=1e-4)


def graded(values: np.ndarray) -> np.ndarray:
    """A matrix of these singular values, (64, 96)."""
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.normal(size=(n, 64)))[0] for n in (64, 96))
    return (left * values @ right.T).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "rank"),
    [
        (np.linspace(2, 1, 64), 16),
        (np.logspace(0, -6, 64), 20),  # the 20th is 1.6e-2 of the first
        (np.logspace(0, -6, 64), 36),  # 4.6e-4
        (np.repeat([1, 1e-3, 1e-4], [10, 20, 34]), 30),
        (1e-25 * np.logspace(0, -2, 64), 20),
    ],
)
@pytest.mark.parametrize("tall", [False, True])
def test_directions_span_what_the_decomposition_says(values, rank, tall):
    grad = graded(values)
    left = torch.linalg.svd(torch.tensor(grad, dtype=torch.float64))[0][:, :rank].numpy()
    basis = np.asarray(jax.jit(leading, static_argnums=1)(grad.T if tall else grad, rank))
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-5)
    np.testing.assert_allclose(basis @ (basis.T @ left), left, atol=5e-4)
    assert (basis[np.abs(basis).argmax(0), range(rank)] > 0).all()


@pytest.mark.parametrize("values", [np.repeat([1.0, 0.0], [10, 54]), np.zeros(64)])
def test_directions_of_nothing_are_directions(values):
    grad = graded(values)
    basis = np.asarray(jax.jit(leading, static_argnums=1)(grad, 30))
    np.testing.assert_allclose(basis.T @ basis, np.eye(30), atol=1e-5)
    np.testing.assert_allclose(basis @ (basis.T @ grad), grad, atol=1e-6)


def test_a_skipped_first_step_leaves_directions():
    """Until they are found, those of the first axes: the update is Adam's on those rows."""
    params = {"x/kernel": np.ones((6, 9), np.float32)}
    grad = {"x/kernel": np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)}
    core, rest = optax.scale_by_adam(B1, B2, EPSILON), optax.scale(-RATE)
    method = Galore(rank=RANK, every=200, scale=SCALE)
    first, second = (
        method.at_step(step, None).optimizer(None, "projected", core, rest, 300) for step in (0, 1)
    )
    updates, _ = second.update(grad, first.init(params), params)
    wanted = np.zeros((6, 9))
    wanted[:RANK] = -RATE * SCALE * np.sign(grad["x/kernel"][:RANK])  # Adam's first step
    np.testing.assert_allclose(updates["x/kernel"], wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adafactor"])
def test_optimizers_that_read_parameters_are_refused(name):
    model = build("bert", {"name": "galore", "rank": 4})
    settings = {**default_config().optimizer, "name": name}
    labels = model.partition.labels
    optimizer = make_optimizer(settings, labels, lambda _: RATE, model.optimizer)
    with pytest.raises(UserError, match="galore.*use optimizer.name=adamw or lion"):
        jax.eval_shape(optimizer.init, model.shapes)
