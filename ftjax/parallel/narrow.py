"""Products in bfloat16 with sums in float32, by processors with units for that.

XLA has such products on CPUs where neither operand lies transposed in memory, or the second alone.
Others it computes in float32: a kernel's gradient, which contracts the first axis of both.
"""

import os
import re
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal

Array = jax.Array
CPUINFO = Path("/proc/cpuinfo")
UNITS = {"amx_bf16", "avx512_bf16"}  # as Linux calls them
LEAST = 16  # of each side of a product, below which rounding costs more than is won
TILE = 8  # rows that stay together while a matrix is transposed
NARROW = jax.make_user_context("")  # the platform that products are narrow for; empty: none is


@cache
def has_units() -> bool:
    """Whether this machine's processor multiplies bfloat16 faster than float32.

    And may do so: `XLA_FLAGS=--xla_cpu_max_isa=AVX512` is heeded.
    """
    most = re.search(r"xla_cpu_max_isa=(\w+)", os.environ.get("XLA_FLAGS", ""))
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    is_there = flags is not None and bool(UNITS & set(flags[1].split()))
    return is_there and (most is None or most[1].startswith(("AVX512_BF16", "AMX")))


def narrowed_for(products: str, dtype: str, platform: str) -> str:
    """What `NARROW` is for a model.

    Args:
        products: `model.products`.
        dtype: of activations.
        platform: that the model runs on.
    """
    if products in ("float32", "float8"):
        return ""
    is_faster = platform == "cpu" and has_units()
    is_chosen = products == "bfloat16" and dtype == "float32"
    return platform if is_faster or is_chosen else ""


def is_narrow(*sizes: int) -> bool:
    """Whether a product of such sides (rows, summed, columns) is to be narrow."""
    return bool(NARROW.value) and min(sizes) >= LEAST


def narrow_matmul(x: Array, y: Array, transposed: bool = False, dtype: Any = None) -> Array:
    """x y, or x yᵀ, of operands rounded to bfloat16 and summed in float32; so are its gradients.

    Under `shard_map` both vary over the same axes.

    Args:
        x: (..., rows, summed).
        y: (..., summed, columns), or (..., columns, summed) if `transposed`.
        transposed: see above.
        dtype: of the product, where it is not x's.
    """
    # Matrices are in one dimension: one that was transposed lies in memory as it was until it is
    # reshaped.
    leading = x.shape[:-2]
    x, y = (z.reshape(*[-1] * bool(leading), *z.shape[-2:]) for z in (x, y))
    product = _matmul(x, y, transposed, jnp.dtype(dtype or x.dtype), NARROW.value)
    return product.reshape(*leading, *product.shape[-2:])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _matmul(x: Array, y: Array, transposed: bool, dtype: Any, platform: str) -> Array:
    return dot(_rounded(x), _rounded(y), transposed).astype(dtype)


def _forward(
    x: CustomVJPPrimal, y: CustomVJPPrimal, transposed: bool, dtype: Any, platform: str
) -> tuple[Array, tuple]:
    left, right = _rounded(x.value), _rounded(y.value)
    # A value of no size says the dtype that a gradient is to have.
    needed = [
        (other, jnp.zeros(0, z.value.dtype)) if z.perturbed else None
        for z, other in ((x, right), (y, left))
    ]
    return dot(left, right, transposed).astype(dtype), needed


def _backward(
    transposed: bool, dtype: Any, platform: str, needed: Any, grad: Array
) -> tuple[Array | None, Array | None]:
    grad, dx, dy = _rounded(grad), None, None
    of_x, of_y = needed
    if of_x is not None:
        dx = dot(grad, of_x[0], not transposed).astype(of_x[1].dtype)
    if of_y is not None:
        first, second = (grad, of_y[0]) if transposed else (of_y[0], grad)
        dy = dot_of_columns(first, second, platform).astype(of_y[1].dtype)
    return dx, dy


_matmul.defvjp(_forward, _backward, symbolic_zeros=True)


def _rounded(x: Array) -> Array:
    return x.astype(jnp.bfloat16)


def dot(x: Array, y: Array, transposed: bool = False) -> Array:
    """x y, or x yᵀ, of matrices or batches of them as they are, summed in float32."""
    return _dot(x, y, x.ndim - 1, y.ndim - (1 if transposed else 2))


def dot_of_columns(x: Array, y: Array, platform: str) -> Array:
    """xᵀ y, as `dot`, for a platform that products are narrow for, or none."""
    if platform != "cpu":
        return _dot(x, y, x.ndim - 2, y.ndim - 2)
    rows, columns, others = x.shape[-2], x.shape[-1], y.shape[-1]
    if (rows + 2 * columns) * others < rows * columns:  # as (yᵀ x)ᵀ less is moved
        return _laid_out_transposed(dot(_laid_out_transposed(y), x))
    return dot(_laid_out_transposed(x), y)


def laid_out(x: Array) -> Array:
    """A matrix as it is, in memory as it is written, also where it was transposed."""
    return x.reshape(-1).reshape(x.shape)


def _dot(x: Array, y: Array, *contracted: int) -> Array:
    batch = tuple(range(x.ndim - 2))
    dimensions = tuple((axis,) for axis in contracted), (batch, batch)
    return jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)


def _laid_out_transposed(x: Array) -> Array:
    """xᵀ of (..., rows, columns), in a form that XLA does not take for a transposition, which it
    would make part of the product."""
    *batch, rows, columns = x.shape
    x = jnp.pad(x, [*[(0, 0)] * len(batch), (0, -rows % TILE), (0, 0)])
    tiles = jnp.moveaxis(x.reshape(*batch, -1, TILE, columns), -1, len(batch))
    return tiles.reshape(*batch, columns, -1)[..., :rows]
