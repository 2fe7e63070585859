"""The pull towards pretrained parameters, by its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.regularization.l2_sp import l2_sp, starts
from ftjax.training.step import init_state, make_step

ALPHA, BETA, RATE = 0.3, 0.2, 0.5
SETTINGS = {"l2_sp": ALPHA, "l2_sp_new": BETA}
START = {"encoder/kernel": jnp.arange(6.0).reshape(2, 3), "classifier/kernel": jnp.ones(3)}


def test_gradients_pull_to_the_start_and_to_0(one_device):
    """Steps of gradient descent on a loss whose gradient is 1: w ← w − η (1 + α (w − w⁰))."""
    frozen = starts(START, ["classifier/kernel"], SETTINGS)
    optimizer = optax.with_extra_args_support(optax.sgd(RATE))

    def loss(params, batch, key):
        return Loss(2 * sum(params[path].sum() for path in START), jnp.asarray(2.0))

    step = make_step(
        loss,
        optimizer,
        lambda _: RATE,
        clip_norm=0.0,
        accumulation=1,
        penalty=lambda params, frozen: l2_sp(params, frozen, ALPHA, BETA),
    )
    state = init_state(START, optimizer, 0, one_device)
    old, new = np.asarray(START["encoder/kernel"]), np.ones(3)
    for _ in range(4):
        state, metrics = step(state, frozen, {})
        slopes = 1 + ALPHA * (old - np.asarray(START["encoder/kernel"])), 1 + BETA * new
        norm = np.sqrt(sum((slope**2).sum() for slope in slopes))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
        old, new = old - RATE * slopes[0], new - RATE * slopes[1]
    np.testing.assert_allclose(state.params["encoder/kernel"], old, rtol=1e-6)
    np.testing.assert_allclose(state.params["classifier/kernel"], new, rtol=1e-6)


def test_a_pull_of_nothing_is_said():
    with pytest.raises(UserError, match=r"regularization\.l2_sp=0\.3: no pretrained parameter"):
        starts(START, list(START), SETTINGS)
    with pytest.raises(UserError, match=r"regularization\.l2_sp_new=0\.2: no new parameter"):
        starts(START, [], SETTINGS)
    assert starts(START, [], {"l2_sp": 0.0, "l2_sp_new": 0.0}) == {}


def test_the_start_is_where_the_parameters_are():
    """No copy is made: the same arrays, in the same places."""
    found = starts(START, [], {"l2_sp": ALPHA, "l2_sp_new": 0.0})
    assert [id(x) for x in jax.tree.leaves(found)] == [id(START[p]) for p in sorted(START)]
