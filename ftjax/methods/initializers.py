"""First values of what methods add, as the libraries have them that published folders are of."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

Init = Callable[..., jax.Array]  # (key, shape, dtype) → an array
ZEROS, ONES = nn.initializers.zeros, nn.initializers.ones
NORMAL = nn.initializers.normal(0.02)
STANDARD_NORMAL = nn.initializers.normal(1.0)
# U(−1/√n, 1/√n) for a matrix of n rows, as `uniform_in_rows`; other numbers come from a key.
SCALED_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def uniform(inputs: int) -> Init:
    """U(−1/√in, 1/√in), which is torch's for a linear layer's kernel and bias."""
    bound = 1 / math.sqrt(inputs)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def uniform_in_rows(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """`uniform` of a matrix (in, out) by its own rows: torch's kaiming_uniform(a=√5)."""
    return uniform(shape[-2])(key, shape, dtype)
