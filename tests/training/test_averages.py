"""Averages of parameters, against numpy's mean and optax's moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ftjax.config import check, default_config
from ftjax.errors import UserError
from ftjax.partition import FROZEN, Partition
from ftjax.training.averages import equal, moving
from ftjax.training.step import init_state, state_shapes


@pytest.mark.parametrize(("first", "every"), [(1, 1), (4, 3), (7, 2)])
def test_the_mean_of_what_comes_at_its_steps(first, every):
    random, averaged = np.random.default_rng(0), jax.jit(equal(first, every))
    seen = [random.normal(size=(3, 2)).astype(np.float32) for _ in range(13)]
    average = {"kernel": jnp.asarray(seen[0])}
    for done in range(1, 13):
        average = averaged(average, {"kernel": jnp.asarray(seen[done])}, jnp.asarray(done))
        wanted = seen[done] if done < first else np.mean(seen[first : done + 1 : every], 0)
        np.testing.assert_allclose(average["kernel"], wanted, rtol=1e-5, atol=1e-6)
        if done <= first:
            np.testing.assert_array_equal(average["kernel"], seen[done])


def test_the_moving_average_is_optax_s():
    """Corrected for its start, so that a short run is not judged by what it started from."""
    random, averaged = np.random.default_rng(0), jax.jit(moving(0.9))
    theirs = optax.ema(0.9, debias=True)
    average = {"kernel": jnp.full((3, 2), 7.0)}
    moments = theirs.init(average)
    for done in range(1, 13):
        seen = {"kernel": jnp.asarray(random.normal(size=(3, 2)), jnp.float32)}
        average = averaged(average, seen, jnp.asarray(done))
        wanted, moments = theirs.update(seen, moments)
        np.testing.assert_allclose(average["kernel"], wanted["kernel"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swa_start": 1.0}, r"train\.swa_start=1\.0"),
        ({"swa_every": 0}, r"train\.swa_every=0"),
        ({"swa_start": 0.5, "average": 0.9}, r"train\.average and train\.swa_start"),
    ],
)
def test_bad_settings_are_named(changes, message):
    config = default_config()
    config.train.update(changes)
    with pytest.raises(UserError, match=message):
        check(config)


@pytest.mark.parametrize("settings", [{}, {"averaged": True}])
def test_a_state_is_as_its_shapes_say(settings, one_device):
    """It keeps an average where one is asked for, and moments of what trains at first."""
    whole = NamedSharding(one_device, PartitionSpec())
    params = jax.device_put({"a/kernel": jnp.ones((2, 3)), "a/bias": jnp.zeros(3)}, whole)
    settings["active"] = Partition({"a/kernel": "all", "a/bias": FROZEN})
    state = init_state(params, optax.adam(0.1), 0, one_device, **settings)
    shapes = state_shapes(params, optax.adam(0.1), one_device, **settings)
    assert set(state.opt_state[0].mu) == {"a/kernel"}
    found, said = (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), each)
        for each in (state, shapes)
    )
    assert found == said
    if "averaged" in settings:
        assert state.best_params is state.average
        jax.tree.map(np.testing.assert_array_equal, state.average, params)
    else:
        assert state.average is None and state.best_params is state.params
