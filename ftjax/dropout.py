"""Dropout whose mask is a hash of the position: cheap, and the same on every mesh."""

import math

import jax
import jax.numpy as jnp


def _mix(x: jax.Array) -> jax.Array:
    """A bijective 32-bit integer hash with low bias (Wellons' "lowbias32")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """Zeroes elements with probability `rate` and scales the others by 1 / (1 - rate).

    Two words of the key seed a hash of each element's position. That takes a few integer
    operations an element instead of threefry's hundred, fuses with its neighbours, and depends
    on the global position alone, so that a sharded array gets the mask of the unsharded one.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout rate must be in [0, 1), got {rate}")
    if rate == 0.0:
        return x
    seed = jax.random.bits(key, (2,), jnp.uint32)
    position = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        if size > 1:
            index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            position = position + index * jnp.uint32(stride)
    bits = _mix(position * jnp.uint32(0x9E3779B1) + seed[0]) ^ seed[1]
    keep = _mix(bits) >= jnp.uint32(int(rate * 2**32))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
