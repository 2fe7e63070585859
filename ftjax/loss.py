"""What a task's loss returns."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Loss(NamedTuple):
    """Σ of weighted losses and Σ of weights, so that parts of a batch add up."""

    total: jax.Array
    weight: jax.Array

    @property
    def divisor(self) -> jax.Array:
        """The weight; where it is 0, what a sum of 0 can be divided by."""
        return jnp.maximum(self.weight, jnp.finfo(jnp.float32).tiny)
