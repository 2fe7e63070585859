"""Products with weights in int8, of which no copy in floating point is made on CPUs."""

from functools import partial

import jax
import jax.numpy as jnp

Array = jax.Array
FEW = 64  # rows, of which a product takes as long as reading the kernel


def int8_product(x: Array, codes: Array, scales: Array, transposed: bool = False) -> Array:
    """x W in float32, of a few rows from integers alone.

    Args:
        x: (..., in).
        codes: (in, out), int8; `transposed`: (out, in).
        scales: (out,), of the outputs.
        transposed: as the codes lie.
    """
    flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    plain, integers = (partial(product, transposed=transposed) for product in (_plain, _integers))
    cpu = integers if len(flat) <= FEW else plain
    y = jax.lax.platform_dependent(flat, codes, cpu=cpu, default=plain)
    return (y * scales).reshape(*x.shape[:-1], -1)


def _plain(x: Array, codes: Array, transposed: bool) -> Array:
    return jnp.einsum(_equation(transposed), x, codes.astype(x.dtype))


def _integers(x: Array, codes: Array, transposed: bool) -> Array:
    """x W for rows x as sums of two of int8, high and low, of some 15 bits together.

    XLA has fast products of int8 with int32 sums on CPUs, of two rows and more. A kernel that is
    converted would be converted as a whole, before the loop over tokens.
    """
    largest = jnp.abs(x).max(-1, keepdims=True)
    high_unit = jnp.where(largest > 0, largest, 1) / 127
    low_unit = high_unit / 254
    high = jnp.round(x / high_unit)
    low = jnp.round((x - high * high_unit) / low_unit)
    digits = jnp.concatenate([high, low]).astype(jnp.int8)
    sums = jnp.einsum(_equation(transposed), digits, codes, preferred_element_type=jnp.int32)
    high_sum, low_sum = jnp.split(sums.astype(jnp.float32), 2)
    return high_sum * high_unit + low_sum * low_unit


def _equation(transposed: bool) -> str:
    return "ri,oi->ro" if transposed else "ri,io->ro"
