"""Rotation of heads: what TPUs compute of it, against slices, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.models.rotary import _turned, _turned_by_product


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_halves_are_exchanged_by_a_product(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3, 16)), dtype)
    np.testing.assert_array_equal(_turned_by_product(x), _turned(x))
    grads = [jax.grad(lambda x, f=f: (f(x) ** 2).sum())(x) for f in (_turned_by_product, _turned)]
    np.testing.assert_array_equal(*(grad.astype(jnp.float32) for grad in grads))
