"""Low-rank factors: whose they are, how they start, and what they make."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.methods.base import leaf
from ftjax.parallel.product import matmul
from ftjax.paths import Flat


def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """U(−1/√in, 1/√in), which is kaiminguniform(a=√5) for a kernel of shape (in, rank)."""
    bound = 1.0 / math.sqrt(shape[-2])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def pair(
    module: nn.Module, sizes: tuple[int, int, int], init_a: Callable, init_b: Callable
) -> tuple[jax.Array, jax.Array]:
    """A and B of a module, of sizes (in, r, out)."""
    size, rank, features = sizes
    into, out = module.axes
    a = leaf(module, "lora_a", init_a, (size, rank), (into, "rank"))
    return a, leaf(module, "lora_b", init_b, (rank, features), ("rank", out))


def product(module: nn.Module, x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """x A B in x's dtype, through the low rank."""
    into, out = module.axes
    return matmul(matmul(x, a, (into, "rank")), b, ("rank", out))


def held(module: nn.Module, name: str) -> jax.Array:
    """A parameter that the module was given."""
    return nn.unbox(module.get_variable("params", name))


def weight_of(module: str, params: Mapping[str, Any]) -> str:
    """Path of what an adapted module multiplies by, or looks up in."""
    table = f"{module}/embedding"
    return table if table in params else f"{module}/kernel"


def adapters(params: Mapping[str, Any]) -> dict[str, Flat]:
    """Module path → its leaves lora_*, by name."""
    found: dict[str, Flat] = {}
    for path, value in params.items():
        module, _, name = path.rpartition("/")
        if name.startswith("lora_"):
            found.setdefault(module, {})[name] = value
    return found
