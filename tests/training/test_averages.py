"""Averages of parameters, against numpy's mean and optax's moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftjax.config import check, default_config
from ftjax.errors import UserError
from ftjax.training.averages import equal, moving


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
