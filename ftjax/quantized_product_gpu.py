"""Products with NF4 kernels on GPUs that decode them where they multiply, in Triton by Pallas.

No kernel is ever there in bfloat16: a block of codes is read, decoded in registers and multiplied.
It is decoded once for each block of rows, so that many rows are multiplied sooner by a kernel that
was decoded as a whole, and few rows (and a full memory) by this.
"""

import jax
import jax.numpy as jnp

from ftjax.quantization import BLOCK, NF4, chosen

Array = jax.Array
HALF = BLOCK // 2  # inputs of a block that stand in the high bits
ROWS, COLUMNS = 128, 64  # of x, and outputs, at a time
LEAST = 16  # rows or columns that Triton multiplies


def takes(codes: Array) -> bool:
    """Whether a matrix's outputs divide into whole blocks; its inputs do."""
    return codes.ndim == 2 and codes.shape[1] % LEAST == 0


def product(
    x: Array, codes: Array, absmax: Array, transposed: bool, interpret: bool = False
) -> Array:
    """x W, or x Wᵀ, in x's dtype, in which W is rounded; sums are in float32.

    Args:
        x: (rows, in); transposed (rows, out).
        codes: (in / 2, out), as `Nf4` has them, that `takes` takes.
        absmax: (in / 64, out), the largest weight of each block, float32.
        transposed: whether by Wᵀ.
        interpret: without a GPU.
    """
    multiply = _by_transposed if transposed else _by_kernel
    return multiply(x, codes, absmax, interpret)


def _decoded(codes: Array, absmax: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    """Weights of the high and of the low bits of codes (half a block, columns)."""
    codes = codes.astype(jnp.int32)
    halves = (chosen(NF4, part) * absmax for part in (codes >> 4, codes & 15))
    high, low = (half.astype(dtype) for half in halves)
    return high, low


def _by_kernel(x: Array, codes: Array, absmax: Array, interpret: bool) -> Array:
    """x W of rows; a program has a block of rows and of outputs, and goes through all inputs."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    rows, columns = _sizes(x, codes.shape[1])
    count, size, out = len(x), x.shape[1], codes.shape[1]
    x = jnp.pad(x, ((0, -count % rows), (0, 0)))

    def program(x_ref, codes_ref, absmax_ref, y_ref):
        def add(block, y):
            inputs, halves = pl.ds(block * BLOCK, HALF), pl.ds(block * HALF, HALF)
            others = pl.ds(block * BLOCK + HALF, HALF)
            high, low = _decoded(codes_ref[halves, :], absmax_ref[block, :][None], x.dtype)
            y += plgpu.dot(x_ref[:, inputs], high)
            return y + plgpu.dot(x_ref[:, others], low)

        start = jnp.zeros((rows, columns), jnp.float32)
        y_ref[...] = jax.lax.fori_loop(0, size // BLOCK, add, start).astype(x.dtype)

    return pl.pallas_call(
        program,
        grid=(len(x) // rows, out // columns),
        in_specs=[
            pl.BlockSpec((rows, size), lambda i, j: (i, 0)),
            pl.BlockSpec((size // 2, columns), lambda i, j: (0, j)),
            pl.BlockSpec((size // BLOCK, columns), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((rows, columns), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((len(x), out), x.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="nf4_product",
    )(x, codes, absmax)[:count]


def _by_transposed(y: Array, codes: Array, absmax: Array, interpret: bool) -> Array:
    """y Wᵀ of rows; a program has a block of rows and of inputs, and goes through all outputs."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

    rows, columns = _sizes(y, codes.shape[1])
    count, out, blocks = len(y), codes.shape[1], len(absmax)
    y = jnp.pad(y, ((0, -count % rows), (0, 0)))

    def program(y_ref, codes_ref, absmax_ref, x_ref):
        def add(part, halves):
            outputs = pl.ds(part * columns, columns)
            weights = _decoded(codes_ref[:, outputs], absmax_ref[:, outputs], y.dtype)
            return tuple(
                half + plgpu.dot(y_ref[:, outputs], weight, trans_b=True)
                for half, weight in zip(halves, weights, strict=True)
            )

        zeros = jnp.zeros((rows, HALF), jnp.float32)
        high, low = jax.lax.fori_loop(0, out // columns, add, (zeros, zeros))
        x_ref[:, :HALF], x_ref[:, HALF:] = high.astype(y.dtype), low.astype(y.dtype)

    return pl.pallas_call(
        program,
        grid=(len(y) // rows, blocks),
        in_specs=[
            pl.BlockSpec((rows, out), lambda i, j: (i, 0)),
            pl.BlockSpec((HALF, out), lambda i, j: (j, 0)),
            pl.BlockSpec((1, out), lambda i, j: (j, 0)),
        ],
        out_specs=pl.BlockSpec((rows, BLOCK), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((len(y), blocks * BLOCK), y.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="nf4_product_transposed",
    )(y, codes, absmax)[:count]


def _sizes(x: Array, out: int) -> tuple[int, int]:
    """Rows and columns at a time."""
    rows = min(ROWS, max(LEAST, 1 << (len(x) - 1).bit_length()))
    return rows, next(n for n in (COLUMNS, COLUMNS // 2, LEAST) if out % n == 0)
