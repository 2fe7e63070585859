"""x W of a quantized kernel, which is decoded tile by tile inside the product.

No more than a tile of W is ever there in full, forward and backward. How that is done is a choice
of platform: a kernel of its own on TPUs, and on NVIDIA's GPUs for a few rows; else a loop of XLA's
products.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from ftjax import quantized_product_gpu as gpu
from ftjax import quantized_product_tpu as tpu
from ftjax.int8_product import FEW
from ftjax.parallel.collectives import gather
from ftjax.parallel.mesh import RULES, fitting, place
from ftjax.parallel.product import LARGE, named, rows
from ftjax.quantization import Blocks, Quantized

Array = jax.Array
TILE = 2**20  # weights that are decoded at a time by the loop


def matmul(x: Array, kernel: Quantized, axes: Sequence[str | None]) -> Array:
    """x W, in x's dtype, in which W is rounded; gradients are x's alone.

    Over a mesh each device has its rows; over the axis fsdp codes are gathered, not what they
    stand for, and gathered anew for the backward pass.

    Args:
        x: (batch, ..., in), or (batch, length, ..., in).
        kernel: of a matrix (in, out).
        axes: logical axes of the kernel.
    """
    return named(_product(x, kernel, tuple(axes), False), axes)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: Array, kernel: Quantized, axes: tuple[str | None, ...], transposed: bool) -> Array:
    """x W, or x Wᵀ."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _on_device(x, kernel, transposed)
    kernel = kernel.once()
    layout = _layout(mesh, x, kernel, axes, transposed)
    if layout is None:
        weight = kernel.dequantized().astype(x.dtype)
        return x @ (weight.T if transposed else weight)
    x_spec, kernel_specs, out_spec, summed = layout

    def local(x: Array, kernel: Quantized) -> Array:
        kernel = jax.tree.map(_gathered, kernel, kernel_specs)
        y = _on_device(x, kernel, transposed)
        return jax.lax.psum(y, summed) if summed else y

    run = jax.shard_map(local, in_specs=(x_spec, kernel_specs), out_specs=out_spec, check_vma=False)
    return run(x, kernel)


def _forward(x: Array, kernel: Quantized, *how: Any) -> tuple[Array, Quantized]:
    return _product(x, kernel, *how), kernel


def _backward(
    axes: tuple[str | None, ...], transposed: bool, kernel: Quantized, grad: Array
) -> tuple[Array, None]:
    if max(leaf.nbytes for leaf in jax.tree.leaves(kernel)) > LARGE:  # else what was gathered stays
        kernel, grad = jax.lax.optimization_barrier((kernel, grad))
    return _product(grad, kernel, axes, not transposed), None


_product.defvjp(_forward, _backward)


def _layout(
    mesh: AbstractMesh, x: Array, kernel: Quantized, axes: Sequence[str | None], transposed: bool
) -> tuple[PartitionSpec, Any, PartitionSpec, str | None] | None:
    """Where x, the parts of a kernel and the product lie, and the axis that it is summed over.

    None where a dimension does not divide.
    """
    placed = place(axes, kernel.shape, mesh.shape)
    into, out = (axis if axis == "tensor" else None for axis in placed)
    leading = (RULES["batch"], RULES["length"], *(None,) * x.ndim)[: x.ndim - 1]
    x_spec, out_spec = PartitionSpec(*leading, into), PartitionSpec(*leading, out)
    if transposed:
        x_spec, out_spec, into = out_spec, x_spec, out
    specs = jax.tree.map(lambda leaf: fitting(mesh.shape, placed[-leaf.ndim :], leaf.shape), kernel)
    # Over fsdp a part may be whole where another is not; over tensor they must lie alike.
    alike = all(
        ("tensor" in tuple(spec)) == ("tensor" in placed[-len(spec) :])
        for spec in jax.tree.leaves(specs)
    )
    return (x_spec, specs, out_spec, into) if alike and _divides(mesh, x_spec, x) else None


def _divides(mesh: AbstractMesh, spec: PartitionSpec, x: Array) -> bool:
    return fitting(mesh.shape, spec, x.shape) == spec


def _gathered(leaf: Array, spec: PartitionSpec) -> Array:
    """A kernel's leaf of one device with those of the others along fsdp."""
    placed = tuple(spec)
    return gather(leaf, "fsdp", placed.index("fsdp")) if "fsdp" in placed else leaf


def _on_device(x: Array, kernel: Quantized, transposed: bool) -> Array:
    """x W or x Wᵀ, all of it on one device."""
    flat = x.reshape(-1, x.shape[-1])
    by_tiles = partial(in_tiles, transposed=transposed)
    kernels: dict[str, Callable[[Array, Quantized], Array]] = {}
    if tpu.takes(kernel):
        kernels["tpu"] = partial(tpu.product, transposed=transposed)
    if len(flat) <= FEW and isinstance(once := kernel.once(), Blocks) and gpu.takes(once.codes):
        kernels["cuda"] = lambda x, _: gpu.product(x, once.codes, once.absmax, transposed)
    if kernels:
        y = jax.lax.platform_dependent(flat, kernel, default=by_tiles, **kernels)
    else:
        y = by_tiles(flat, kernel)
    return y.reshape(*x.shape[:-1], -1)


def in_tiles(x: Array, kernel: Quantized, transposed: bool) -> Array:
    """x W of rows, or x Wᵀ, a tile of what it gives after another.

    There are two tiles at least: what no loop decodes, XLA's compiler for CPUs keeps from the
    forward pass for the backward pass.

    Args:
        x: (rows, in); transposed (rows, out).
        kernel: of a matrix (in, out).
        transposed: whether by Wᵀ.
    """
    axis, unit = (0, kernel.block) if transposed else (1, 1)
    size = kernel.shape[axis]
    tile = size // divisor_from(size // unit, max(2, math.prod(kernel.shape) // TILE))

    def step(i: Array, y: Array) -> Array:
        weight = kernel.part(i * tile, tile, axis).dequantized().astype(x.dtype)
        part = rows(x, weight.T if transposed else weight)
        return jax.lax.dynamic_update_slice_in_dim(y, part, i * tile, 1)

    # Overwritten, but of x: XLA's compiler for CPUs would make the zeros of all layers beforehand.
    unwritten = jnp.full((len(x), size), x[0, 0])
    return jax.lax.fori_loop(0, size // tile, step, unwritten)


def divisor_from(n: int, least: int) -> int:
    """The smallest divisor of n that is no less than `least`; n where there is none."""
    return next((d for d in range(least, n) if n % d == 0), n)
