"""The equal average over the end of a run, against numpy's mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.config import check, default_config
from ftjax.errors import UserError
from ftjax.training.averages import equal


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
