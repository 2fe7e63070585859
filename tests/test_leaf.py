"""A parameter that a module is given is taken, where it has the shape; else it is made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import NameInUseError, ScopeParamShapeError

from ftjax.leaf import leaf
from ftjax.models.layers import Dense


def test_a_given_one_is_taken_and_its_init_not_traced(monkeypatch):
    kernel = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    monkeypatch.setattr("jax.random.normal", None)
    y = Dense(2, use_bias=False).apply({"params": {"kernel": kernel}}, jnp.eye(3))
    np.testing.assert_array_equal(y, kernel)


def test_one_of_another_shape_is_refused():
    params = {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}
    with pytest.raises(ScopeParamShapeError, match=r"kernel.*\(3, 2\).*\(4, 2\)"):
        Dense(2).apply({"params": params}, jnp.eye(3))


def test_one_name_is_of_one_parameter():
    class Twice(Dense):
        def product(self, x, kernel):
            return x @ leaf(self, "kernel", jax.nn.initializers.zeros, kernel.shape, self.axes)

    with pytest.raises(NameInUseError):
        Twice(2).init(jax.random.key(0), jnp.eye(3))
