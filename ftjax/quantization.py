"""Kernels in few bits: NF4 with double quantization, and int8."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ftjax.int8_product import int8_product

BLOCK, GROUP = 64, 256
# Quantiles of a normal distribution, scaled to [-1, 1], with an exact zero (Dettmers et al. 2023,
# appendix E).
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)


def dynamic_map() -> np.ndarray:
    """The 256 values of signed 8-bit dynamic quantization (Dettmers 2015, §2.1), in order.

    Decade i, from 1e-6 to 1, has 2^i values of each sign, midway between equal steps; besides
    there are 0 and 1.
    """
    values = [np.array([0.0, 1.0])]
    for i in range(7):
        steps = np.linspace(0.1, 1, 2**i + 1)
        middles = 10.0 ** (i - 6) * (steps[:-1] + steps[1:]) / 2
        values += [middles, -middles]
    return np.sort(np.concatenate(values)).astype(np.float32)


DYNAMIC = dynamic_map()


class Quantized:
    """A kernel (..., in, out) in few bits: a pytree whose leaves keep the leading axes.

    Attributes:
        block: inputs of an output that only have a meaning together.
    """

    block: ClassVar[int] = BLOCK

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., in, out)."""
        raise NotImplementedError

    def dequantized(self) -> jax.Array:
        """(..., in, out) in float32."""
        raise NotImplementedError

    def product(self, x: jax.Array) -> jax.Array:
        """x W in float32, or x Wᵀ with a table, where generation holds one; x (..., in)."""
        raise NotImplementedError

    def rows(self, ids: jax.Array) -> jax.Array:
        """Those of a table (size, features) of integers (...), float32 (..., features)."""
        raise NotImplementedError

    def once(self) -> "Quantized":
        """The same with scales that are not quantized themselves; each leaf is of inputs or outputs
        alone, so that it can lie on a mesh as the kernel does."""
        return self

    def part(self, start: int | jax.Array, size: int, axis: int) -> "Quantized":
        """Of a matrix, `size` inputs (axis 0) or outputs (axis 1) from `start`, as of `once`."""
        raise NotImplementedError


@struct.dataclass
class Blocks(Quantized):
    """NF4 with a plain scale a block: W ≈ NF4[code] · absmax.

    Attributes:
        codes: (in / 2, out), as those of `Nf4`.
        absmax: (in / 64, out), float32.
    """

    codes: jax.Array
    absmax: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        rows, out = self.codes.shape
        return 2 * rows, out

    def part(self, start: int | jax.Array, size: int, axis: int) -> "Blocks":
        return jax.tree.map(lambda leaf: _sliced(leaf, start, size, axis, self.shape), self)

    def dequantized(self) -> jax.Array:
        blocks, out = self.absmax.shape
        codes = self.codes.reshape(blocks, BLOCK // 2, out)
        codes = jnp.concatenate([codes >> 4, codes & 15], 1)
        return (looked_up(NF4, codes, chosen) * self.absmax[:, None]).reshape(-1, out)


@struct.dataclass
class Nf4(Quantized):
    """W ≈ NF4[code] · absmax, a block of 64 inputs of an output (Dettmers et al. 2023, §3).

    The absmax of 256 blocks at a time, less the mean of all, are of 8 bits themselves:
    DYNAMIC[code] times their largest. Blocks are counted output by output. 4 + 8/64 + 32/(64 · 256)
    bits a parameter, 4.127, and the mean.

    Attributes:
        codes: (..., in / 2, out), of a block's inputs i and i + 32, the former in the high four
            bits: halves are put together, where neighbours would have to be interleaved.
        scales: (..., in / 64, out), of 8 bits.
        groups: (..., blocks / 256), float32.
        mean: (...), float32.
    """

    codes: jax.Array
    scales: jax.Array
    groups: jax.Array
    mean: jax.Array

    @classmethod
    def of(cls, kernel: jax.Array) -> "Nf4":
        """Quantizes a matrix, or one matrix at a time; 64 must divide the inputs."""
        if kernel.ndim > 2:
            return jax.lax.map(cls.of, kernel)
        out = kernel.shape[1]
        blocks = kernel.astype(jnp.float32).reshape(-1, BLOCK, out)
        absmax = jnp.abs(blocks).max(1)
        codes = nearest(NF4, blocks / _divisor(absmax)[:, None])
        high, low = jnp.split(codes, 2, 1)
        mean = absmax.mean()
        rest = (absmax - mean).T.reshape(-1)
        groups = jnp.pad(rest, (0, -rest.size % GROUP)).reshape(-1, GROUP)
        largest = jnp.abs(groups).max(1)
        scales = nearest(DYNAMIC, groups / _divisor(largest)[:, None]).reshape(-1)[: rest.size]
        scales = scales.reshape(out, -1).T
        return cls((high << 4 | low).reshape(-1, out), scales, largest, mean)

    @property
    def shape(self) -> tuple[int, ...]:
        *leading, rows, out = self.codes.shape
        return (*leading, 2 * rows, out)

    def dequantized(self) -> jax.Array:
        if self.mean.ndim:
            return jax.vmap(Nf4.dequantized)(self)
        return self.once().dequantized()

    def once(self) -> Blocks:
        blocks, out = self.scales.shape
        largest = jnp.repeat(self.groups, GROUP)[: blocks * out].reshape(out, blocks).T
        return Blocks(self.codes, self._absmax(self.scales, largest))

    def part(self, start: int | jax.Array, size: int, axis: int) -> Blocks:
        codes, scales = (
            _sliced(x, start, size, axis, self.shape) for x in (self.codes, self.scales)
        )
        blocks, numbers = len(self.scales), [jnp.arange(n) for n in scales.shape]
        numbers[axis] += start // (1, BLOCK)[axis == 0]
        largest = self.groups[(numbers[1] * blocks + numbers[0][:, None]) // GROUP]
        return Blocks(codes, self._absmax(scales, largest))

    def _absmax(self, scales: jax.Array, largest: jax.Array) -> jax.Array:
        return looked_up(DYNAMIC, scales, among) * largest + self.mean


@struct.dataclass
class Int8(Quantized):
    """W ≈ code · scale, with a scale an output: its largest weight is ±127.

    Attributes:
        codes: (..., in, out), int8.
        scales: (..., out), float32.
    """

    codes: jax.Array
    scales: jax.Array

    block: ClassVar[int] = 1

    @classmethod
    def of(cls, kernel: jax.Array) -> "Int8":
        """Quantizes a matrix, or one matrix at a time."""
        if kernel.ndim > 2:
            return jax.lax.map(cls.of, kernel)
        wide = kernel.astype(jnp.float32)
        scales = jnp.abs(wide).max(0) / 127
        return cls(jnp.round(wide / _divisor(scales)).astype(jnp.int8), scales)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    def dequantized(self) -> jax.Array:
        return self.codes.astype(jnp.float32) * self.scales[..., None, :]

    def product(self, x: jax.Array) -> jax.Array:
        return int8_product(x, self.codes, self.scales)

    def part(self, start: int | jax.Array, size: int, axis: int) -> "Int8":
        codes = jax.lax.dynamic_slice_in_dim(self.codes, start, size, axis)
        if axis == 0:
            return Int8(codes, self.scales)
        return Int8(codes, jax.lax.dynamic_slice_in_dim(self.scales, start, size))


@struct.dataclass
class Int8Table(Quantized):
    """A table whose row i is code · scale: its largest number is ±127.

    Attributes:
        codes: (size, features), int8.
        scales: (size,), float32.
    """

    codes: jax.Array
    scales: jax.Array

    @classmethod
    def of(cls, table: jax.Array) -> "Int8Table":
        """Quantizes a table."""
        kernel = Int8.of(table.T)
        return cls(kernel.codes.T, kernel.scales)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the table."""
        return self.codes.shape

    def dequantized(self) -> jax.Array:
        return self.codes.astype(jnp.float32) * self.scales[:, None]

    def product(self, x: jax.Array) -> jax.Array:
        return int8_product(x, self.codes, self.scales, transposed=True)

    def rows(self, ids: jax.Array) -> jax.Array:
        codes, scales = (jnp.take(part, ids, axis=0) for part in (self.codes, self.scales))
        return codes.astype(jnp.float32) * scales[..., None]


FORMATS = {"nf4": Nf4, "int8": Int8}


def dequantized(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with plain float32 arrays in the place of quantized ones."""
    return {p: x.dequantized() if isinstance(x, Quantized) else x for p, x in params.items()}


def nearest(table: np.ndarray, x: jax.Array) -> jax.Array:
    """Index of the value of an ordered table that is nearest to each x."""
    between = (table[1:] + table[:-1]) / 2
    return jnp.searchsorted(between, x, method="compare_all").astype(jnp.uint8)


def looked_up(table: np.ndarray, codes: jax.Array, without: Callable) -> jax.Array:
    """table[codes]; but for CPUs `without` a gather, which TPUs do element by element."""
    return jax.lax.platform_dependent(
        codes, cpu=lambda codes: jnp.asarray(table)[codes], default=partial(without, table)
    )


def chosen(table: np.ndarray, codes: jax.Array) -> jax.Array:
    """table[codes] by a tree of selections, a bit of the code a level."""
    values = list(map(np.float32, table))  # no arrays, which a kernel's body could not hold
    for bit in range(len(table).bit_length() - 1):
        is_set = (codes >> bit & 1).astype(bool)
        values = [jnp.where(is_set, *pair[::-1]) for pair in zip(*[iter(values)] * 2, strict=True)]
    return values[0]


def among(table: np.ndarray, codes: jax.Array) -> jax.Array:
    """table[codes] as the sum of what a code is and zeros, for a table too long for `chosen`."""
    is_code = codes[..., None] == jnp.arange(len(table), dtype=codes.dtype)
    return jnp.where(is_code, table, 0).sum(-1)


def _sliced(
    leaf: jax.Array, start: int | jax.Array, size: int, axis: int, shape: tuple[int, ...]
) -> jax.Array:
    """Of a leaf (in / n, out) of a kernel of a shape, what belongs to inputs or outputs of it."""
    per = shape[axis] // leaf.shape[axis]
    return jax.lax.dynamic_slice_in_dim(leaf, start // per, size // per, axis)


def _divisor(scale: jax.Array) -> jax.Array:
    """What is zero in all of a block stays zero."""
    return jnp.where(scale > 0, scale, 1.0)
