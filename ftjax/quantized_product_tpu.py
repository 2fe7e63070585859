"""The kernel for TPUs of x W of a quantized W: tiles are decoded in the chip's own memory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.quantization import BLOCK, NF4, Blocks, Int8, Quantized, chosen

Array = jax.Array
ROWS, SIDE, LANES = 1024, 512, 128  # of a tile: most rows of x, most inputs or outputs; its least
NAME = "quantized_product"
VMEM = 2**25  # bytes of the chip's own memory that tiles may take


def takes(kernel: Quantized) -> bool:
    """Whether a matrix has tiles of whole blocks and lanes."""
    return all(_side(size) is not None for size in kernel.shape)


def _side(size: int) -> int | None:
    """A tile's part of a dimension: all of it, or what divides it in whole lanes."""
    if size <= 2 * SIDE:
        return size
    return next((n for n in range(SIDE, 0, -LANES) if size % n == 0), None)


@partial(jax.jit, static_argnames="transposed")
def product(x: Array, kernel: Quantized, transposed: bool) -> Array:
    """x W, or x Wᵀ, in x's dtype, in which W is rounded; sums are in float32.

    Args:
        x: (rows, in); transposed (rows, out).
        kernel: of a matrix (in, out), of which `takes` is true.
        transposed: whether by Wᵀ.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    kernel = kernel.once()
    (inputs, outputs), (count, _) = kernel.shape, x.shape
    tile_in, tile_out, tile_rows = _side(inputs), _side(outputs), min(ROWS, count)
    # The grid's last dimension is what is summed over.
    if transposed:
        grid = inputs // tile_in, pl.cdiv(count, tile_rows), outputs // tile_out
        given, summed, place = tile_in, tile_out, lambda j, i, k: (j, k)
    else:
        grid = outputs // tile_out, pl.cdiv(count, tile_rows), inputs // tile_in
        given, summed, place = tile_out, tile_in, lambda j, i, k: (k, j)
    leaves, specs = _tiles(kernel, tile_in, tile_out, place)
    decode = _nf4 if isinstance(kernel, Blocks) else _int8

    def tile(x: Array, *refs: Array) -> None:
        *parts, y, weight, total = refs

        @pl.when(pl.program_id(2) == 0)
        def _() -> None:
            total[...] = jnp.zeros_like(total)

        decode(*parts, weight)
        dimensions = (((1,), (1 if transposed else 0,)), ((), ()))
        total[...] += jax.lax.dot_general(
            x[...], weight[...], dimensions, preferred_element_type=jnp.float32
        )

        @pl.when(pl.program_id(2) == grid[2] - 1)
        def _() -> None:
            y[...] = total[...].astype(y.dtype)

    return pl.pallas_call(
        tile,
        grid=grid,
        in_specs=[pl.BlockSpec((tile_rows, summed), lambda j, i, k: (i, k)), *specs],
        out_specs=pl.BlockSpec((tile_rows, given), lambda j, i, k: (i, j)),
        out_shape=jax.ShapeDtypeStruct((count, grid[0] * given), x.dtype),
        scratch_shapes=[
            pltpu.VMEM((tile_in, tile_out), x.dtype),
            pltpu.VMEM((tile_rows, given), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        name=NAME,
    )(x, *leaves)


def kernel_flops(name: str, inputs: Sequence[tuple[str, tuple[int, ...]]]) -> float:
    """FLOPs of the product of one run; 0 of other kernels.

    Args:
        name: of the kernel, as the compiled program has it.
        inputs: dtype and shape of what it reads: x (rows, ...), then codes and scales.
    """
    if not name.startswith(NAME):
        return 0.0
    (_, (count, _)), (_, (coded, outputs)), (_, scales) = inputs
    inputs = coded if len(scales) == 2 else 2 * coded  # of two to a byte there are scales a block
    return 2.0 * count * inputs * outputs


def _tiles(
    kernel: Blocks | Int8, tile_in: int, tile_out: int, place: Callable[..., tuple[Any, Any]]
) -> tuple[list, list]:
    """The leaves that the kernel reads, and what a step of its grid reads of each."""
    from jax.experimental import pallas as pl

    if isinstance(kernel, Int8):
        codes, scales = kernel.codes, kernel.scales[None]
        at_scales = pl.BlockSpec((1, tile_out), lambda *step: (0, place(*step)[1]))
        return [codes, scales], [pl.BlockSpec((tile_in, tile_out), place), at_scales]
    # A tile's few scales are a dimension of their own, which need not fill registers.
    scales = kernel.absmax.reshape(-1, tile_in // BLOCK, kernel.shape[1])
    at_scales = pl.BlockSpec(
        (1, tile_in // BLOCK, tile_out), lambda *step: (place(*step)[0], 0, place(*step)[1])
    )
    return [kernel.codes, scales], [pl.BlockSpec((tile_in // 2, tile_out), place), at_scales]


def _nf4(codes: Array, absmax: Array, weight: Array) -> None:
    half = BLOCK // 2
    for block in range(absmax.shape[1]):
        both = codes[half * block : half * (block + 1)].astype(jnp.int32)
        scale = absmax[0, block : block + 1]
        for i, code in enumerate((both >> 4, both & 15)):
            start = BLOCK * block + half * i
            weight[start : start + half] = (chosen(NF4, code) * scale).astype(weight.dtype)


def _int8(codes: Array, scales: Array, weight: Array) -> None:
    weight[...] = (codes[...].astype(jnp.float32) * scales[...]).astype(weight.dtype)
