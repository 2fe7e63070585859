"""Kernels in bfloat16 or int8 as CPUs read them: words of 32 bits, in the order of the product.

XLA's own products of narrow kernels interleave each kernel anew, every time. These are loops that
XLA's compiler makes of plain arithmetic: a word has weights of several inputs and one output, and
the compiler widens and sums words of neighbouring outputs side by side. What its compiler does with
a loop decides the form:

- `lax.reduce` of two operands: one alone is given to a library, after a float32 kernel is written.
- Over few words: their loop is unrolled, and the one over outputs is done by vectors. The sums are
  then summed, 1/32 as many numbers as there are weights.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ftjax.quantization import Int8, Quantized

Array = jax.Array
WORDS = 8  # of an output, that are summed at once; of bfloat16 twice as many for one row
GROUPS = 32  # of words, whose sums are summed by an unrolled loop too
COLUMNS = 4096  # outputs next to each other, at most
LANES = 16  # of which a multiple lie next to each other
PAIR = 2  # rows, that a kernel is read once for
FEW = 8  # rows, beyond which a float32 kernel is made and multiplied sooner


@struct.dataclass
class Packed(Quantized):
    """A kernel, or a table whose rows are read off, with weights of 16 or 8 bits.

    Attributes:
        words: (blocks, in / weights a word, columns), uint32; zeros where there are fewer inputs or
            outputs. Part i of a word, from the lowest bits, is of input i · in / weights a word
            and the following.
        scales: (out,) float32, of int8; None of bfloat16.
        size: (in, out).
        is_table: whether it stands for a table (out, in).
    """

    words: Array
    scales: Array | None
    size: tuple[int, int] = struct.field(pytree_node=False)
    is_table: bool = struct.field(pytree_node=False)

    @classmethod
    def of(cls, array: Array, weights: str, is_table: bool = False) -> "Packed":
        """Rounds and arranges a kernel (in, out) or a table (out, in).

        Args:
            array: see above.
            weights: "bfloat16", or "int8" with a scale an output, see `Int8`.
            is_table: which of them it is.
        """
        kernel, scales = array.T if is_table else array, None
        if weights == "int8":
            held = Int8.of(kernel)
            units, scales = jax.lax.bitcast_convert_type(held.codes, jnp.uint8), held.scales
        else:
            units = jax.lax.bitcast_convert_type(kernel.astype(jnp.bfloat16), jnp.uint16)
        return cls(_arranged(units), scales, kernel.shape, is_table)

    @property
    def shape(self) -> tuple[int, int]:
        return self.size[::-1] if self.is_table else self.size

    def dequantized(self) -> Array:
        kernel = jnp.stack(self.parts()).transpose(0, 2, 1, 3)
        inputs, outputs = self.size
        kernel = kernel.reshape(-1, kernel.shape[2] * kernel.shape[3])[:inputs, :outputs]
        kernel = kernel if self.scales is None else kernel * self.scales
        return kernel.T if self.is_table else kernel

    def product(self, x: Array) -> Array:
        flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
        # As if it were another kernel each time: XLA would widen it before a loop over tokens.
        kernel, flat = jax.lax.optimization_barrier((self, flat))
        if len(flat) > FEW:
            equation = "ri,oi->ro" if kernel.is_table else "ri,io->ro"
            return jnp.einsum(equation, flat, kernel.dequantized()).reshape(*x.shape[:-1], -1)
        # A quotient is not computed anew for every output, as what x comes of would be.
        flat = flat / jnp.where(flat == flat, 1, jnp.nan)
        pairs = [flat[i : i + PAIR] for i in range(0, len(flat), PAIR)]
        y = jnp.concatenate([_product(pair, kernel) for pair in pairs])
        y = y if kernel.scales is None else y * kernel.scales
        return y.reshape(*x.shape[:-1], -1)

    def rows(self, ids: Array) -> Array:
        columns = self.words.shape[-1]
        words = self.words[ids // columns, :, ids % columns]
        parts = jnp.stack(_widened(words, self.scales is not None), -2)
        rows = parts.reshape(*ids.shape, -1)[..., : self.size[0]]
        return rows if self.scales is None else rows * self.scales[ids][..., None]

    def parts(self) -> list[Array]:
        """What the words hold, without scales: float32, each of the words' shape."""
        return _widened(self.words, self.scales is not None)


def _product(x: Array, kernel: Packed) -> Array:
    """Of one row or two, without scales."""
    parts, (blocks, size, columns) = kernel.parts(), kernel.words.shape
    words = WORDS if len(x) == 2 or len(parts) == 4 else 2 * WORDS
    parts = [part.reshape(blocks, -1, words, columns) for part in parts]
    x = jnp.pad(x, ((0, 0), (0, len(parts) * size - x.shape[1])))
    x = x.reshape(len(x), len(parts), 1, -1, words, 1)
    products = [[x[row, i] * part for i, part in enumerate(parts)] for row in range(len(x))]
    both = products if len(x) == 2 else [products[0][::2], products[0][1::2]]
    operands = tuple(sum(rest, first) for first, *rest in both)
    sums = _summed(operands, 2)
    if sums[0].shape[1] <= GROUPS:
        sums = [part[:, None] for part in _summed(sums, 1)]
    rows = sums if len(x) == 2 else [sums[0] + sums[1]]
    return jnp.stack([row.sum(1).reshape(-1)[: kernel.size[1]] for row in rows])


def _summed(both: Sequence[Array], axis: int) -> Sequence[Array]:
    """Two arrays over the same axis, in one loop."""
    zeros = (np.float32(0), np.float32(0))
    return jax.lax.reduce(tuple(both), zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), (axis,))


def _widened(words: Array, is_int8: bool) -> list[Array]:
    bitcast = jax.lax.bitcast_convert_type
    if is_int8:
        signed = bitcast(words, jnp.int32)
        return [(signed << up >> 24).astype(jnp.float32) for up in (24, 16, 8, 0)]
    return [bitcast(bits, jnp.float32) for bits in (words << 16, words & np.uint32(0xFFFF0000))]


def _arranged(units: Array) -> Array:
    """(in, out) of 8 or 16 bits as words, see `Packed`."""
    bits: Any = 8 * units.dtype.itemsize
    each = 32 // bits
    inputs, outputs = units.shape
    blocks = -(-outputs // COLUMNS)
    columns = -(-outputs // (blocks * LANES)) * LANES
    rows = -(-inputs // (each * 2 * WORDS)) * 2 * WORDS
    units = jnp.pad(units, ((0, each * rows - inputs), (0, blocks * columns - outputs)))
    parts = units.astype(jnp.uint32).reshape(each, rows, blocks, columns)
    words = sum(part << (bits * i) for i, part in enumerate(parts))
    return words.swapaxes(0, 1)
