"""Products of rows that are sorted by group with a kernel a group."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
BLOCK = 256  # most rows of a group that are multiplied at a time


def grouped_matmul(x: Array, kernel: Array, sizes: Array) -> Array:
    """Each row by the kernel of its group, in x's dtype: (rows, out).

    XLA has kernels for it, but on CPUs, where it multiplies every row by every kernel. Under
    `shard_map` all three vary over the same axes.

    Args:
        x: (rows, in), those of the first group first.
        kernel: (groups, in, out).
        sizes: (groups,) rows of each; what is given of rows past them is not to be read.
    """
    return jax.lax.platform_dependent(x, kernel, sizes, cpu=in_blocks, default=_at_once)


def _at_once(x: Array, kernel: Array, sizes: Array) -> Array:
    return jax.lax.ragged_dot(x, kernel.astype(x.dtype), sizes)


@jax.custom_vjp
def in_blocks(x: Array, kernel: Array, sizes: Array) -> Array:
    """`grouped_matmul`, a block of one group's rows after another."""
    return _products(x, kernel, sizes, transposed=False)


def _forward(x: Array, kernel: Array, sizes: Array) -> tuple[Array, tuple]:
    return in_blocks(x, kernel, sizes), (x, kernel, sizes)


def _backward(residuals: tuple, grad: Array) -> tuple[Array, Array, None]:
    x, kernel, sizes = residuals
    return _products(grad, kernel, sizes, transposed=True), _outer(x, kernel, sizes, grad), None


in_blocks.defvjp(_forward, _backward)


def _products(x: Array, kernel: Array, sizes: Array, transposed: bool) -> Array:
    """x W, or x Wᵀ; loops apart from `_outer`'s, so that what nothing reads is not computed."""
    block = _block(x, sizes)

    def body(i: Array, out: Array) -> Array:
        group, row, _ = block_of(i)
        weight = jax.lax.dynamic_index_in_dim(kernel, group, keepdims=False).astype(x.dtype)
        y = jax.lax.dynamic_slice_in_dim(padded, row, block) @ (weight.T if transposed else weight)
        # Past the group's end it is overwritten by the next one's.
        return jax.lax.dynamic_update_slice_in_dim(out, y, row, 0)

    padded, (count, block_of) = _padded(x, block), _blocks(sizes, block)
    out = _zeros((len(padded), kernel.shape[1 if transposed else 2]), x.dtype, sizes)
    return jax.lax.fori_loop(0, count, body, out)[: len(x)]


def _outer(x: Array, kernel: Array, sizes: Array, grad: Array) -> Array:
    """The gradient of the kernel: xᵀ dy of each group, summed in float32."""
    block = _block(x, sizes)

    def body(i: Array, total: Array) -> Array:
        group, row, remaining = block_of(i)
        rows, cotangents = (jax.lax.dynamic_slice_in_dim(y, row, block) for y in padded)
        rows = jnp.where((jnp.arange(block) < remaining)[:, None], rows, 0)
        product = jnp.matmul(rows.T, cotangents, preferred_element_type=jnp.float32)
        partial_sum = jax.lax.dynamic_index_in_dim(total, group, keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(total, partial_sum + product, group, 0)

    padded, (count, block_of) = [_padded(y, block) for y in (x, grad)], _blocks(sizes, block)
    total = jax.lax.fori_loop(0, count, body, _zeros(kernel.shape, jnp.float32, sizes))
    return total.astype(kernel.dtype)


def _zeros(shape: tuple[int, ...], dtype: jnp.dtype, sizes: Array) -> Array:
    """That vary, under `shard_map`, as what a loop puts in their place."""
    return jnp.full(shape, (0 * sizes[0]).astype(dtype))


def _block(x: Array, sizes: Array) -> int:
    """About the rows that a group has: the fewest blocks, with few rows that are not its own."""
    return min(BLOCK, 1 << max(0, (len(x) // len(sizes) - 1).bit_length()))


def _padded(x: Array, block: int) -> Array:
    return jnp.pad(x, ((0, block), (0, 0)))


def _blocks(sizes: Array, block: int) -> tuple[Array, Callable]:
    """How many blocks there are, and of which group each is, where it starts, its group's rows."""
    blocks = -(-sizes // block)
    ends, starts = jnp.cumsum(blocks), jnp.cumsum(sizes) - sizes

    def block_of(i: Array) -> tuple[Array, Array, Array]:
        group = jnp.searchsorted(ends, i, side="right", method="compare_all")
        offset = (i - ends[group] + blocks[group]) * block
        return group, starts[group] + offset, sizes[group] - offset

    return ends[-1], block_of
