"""Products with kernels of which every device holds a part."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import AbstractMesh, PartitionSpec

from ftjax.int8_product import FEW
from ftjax.parallel.collectives import gather
from ftjax.parallel.float8 import float8_matmul, is_float8
from ftjax.parallel.mesh import RULES, place, ways_of
from ftjax.parallel.narrow import is_narrow, narrow_matmul
from ftjax.parallel.platform import SCANNED, SPARSE_CORES
from ftjax.quantization import Quantized

Array = jax.Array
LARGE = 2**26  # bytes of a kernel that is not kept gathered from a layer's forward pass on
PRODUCT, WIDE = "product", "wide product"  # of what is given, for `jax.checkpoint`


def matmul(
    x: Array, kernel: Array | Quantized, axes: Sequence[str | None], dtype: Any = None
) -> Array:
    """x W, in x's dtype.

    Over the axis fsdp a kernel is gathered, and its gradient is summed and scattered, in x's
    dtype; the gathered kernel is not kept for the backward pass but gathered anew.

    Args:
        x: (batch, ..., in), or (batch, length, ..., in).
        kernel: (in, out); in few bits, for generation, on meshes without fsdp.
        axes: logical axes of the kernel.
        dtype: of what is given, where it is not x's: float32.
    """
    if isinstance(kernel, Quantized):
        return kernel.product(x).astype(dtype or x.dtype)
    mesh = jax.sharding.get_abstract_mesh()
    kernel = rounded(kernel) if (kernel.dtype, x.dtype) == (jnp.float32, jnp.bfloat16) else kernel
    if mesh.empty or mesh.shape["fsdp"] * mesh.shape["sequence"] == 1 or x.ndim == 1:
        return named(rows(x, kernel, dtype), axes)
    kernel = kernel.astype(x.dtype)
    placed = place(axes, kernel.shape, mesh.shape)
    into, out = (_without_fsdp(axis) for axis in placed)
    leading = (RULES["batch"], RULES["length"], *(None,) * x.ndim)[: x.ndim - 1]
    specs = PartitionSpec(*leading, into), PartitionSpec(*placed)
    gathered = [i for i, axis in enumerate(placed) if "fsdp" in _names(axis)]
    apart = gathered or mesh.shape["sequence"] > 1
    if not (apart and _divides(mesh, specs[0], x) and _divides(mesh, specs[1], kernel)):
        return named(rows(x, kernel, dtype), axes)
    of_x, of_kernel = ([name for axes in spec for name in _names(axes)] for spec in specs)
    others = tuple(name for axes in leading for name in _names(axes) if name != "fsdp")
    multiply = jax.shard_map(
        partial(
            _local,
            dimension=gathered[0] if gathered else None,
            summed=into,
            others=others,
            columns=tuple(name for name in of_kernel if name not in of_x),
            dtype=dtype,
        ),
        in_specs=specs,
        out_specs=PartitionSpec(*leading, out),
    )
    x, kernel = in_turn(x, kernel)
    # Without it the compiler keeps what is gathered: from the forward pass on, unless in a loop.
    again = kernel.nbytes > LARGE and not (SPARSE_CORES.value and SCANNED.value)
    y = jax.checkpoint(multiply, prevent_cse=again)(x, kernel)
    return named(y, axes)


def named(y: Array, axes: Sequence[str | None]) -> Array:
    """A product with its name, by which a policy keeps it for the backward pass.

    One with few features in between has none: it is as soon computed as read.
    """
    return y if axes[0] == "rank" else checkpoint_name(y, WIDE if axes[1] == "mlp" else PRODUCT)


@jax.custom_vjp
def rounded(kernel: Array) -> Array:
    """float32 as bfloat16, not before it is asked for.

    TPUs' compiler would else round the kernels of all scanned layers beforehand, and keep both.
    """
    bits = jax.lax.optimization_barrier(jax.lax.bitcast_convert_type(kernel, jnp.uint32))
    return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


rounded.defvjp(lambda kernel: (rounded(kernel), None), lambda _, g: (g.astype(jnp.float32),))


def in_turn(x: Array, y: Array) -> tuple[Array, Array]:
    """Both as they are. Backward, nothing goes on from either before both gradients are there.

    For a kernel y: else the compiler puts scatters off, and holds the gradients of a whole layer
    at once. Sparse cores scatter them while the next are computed.
    """
    return (x, y) if SPARSE_CORES.value else _in_turn(x, y)


@jax.custom_vjp
def _in_turn(x: Array, y: Array) -> tuple[Array, Array]:
    return x, y


def _apart(x: CustomVJPPrimal, y: CustomVJPPrimal) -> tuple[tuple[Array, Array], None]:
    return (x.value, y.value), None


def _joined(_: None, grads: tuple[Any, Any]) -> tuple[Any, Any]:
    if any(isinstance(grad, SymbolicZero) for grad in grads):
        return grads
    return tuple(jax.lax.optimization_barrier(grads))


_in_turn.defvjp(_apart, _joined, symbolic_zeros=True)


def gated(act: Callable[[Array], Array], gate: Array, x: Array, kept: bool = False) -> Array:
    """act(gate) · x.

    Backward, one gradient after the other, so that they take no new memory: unless both inputs are
    `kept` for it, where there is memory, and less is written if the compiler chooses.
    """
    return act(gate) * x if kept else _in_turn_gated(act, gate, x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_turn_gated(act: Callable[[Array], Array], gate: Array, x: Array) -> Array:
    return act(gate) * x


def _gated(act: Callable[[Array], Array], gate: Array, x: Array) -> tuple[Array, Any]:
    return act(gate) * x, (gate, x)


def _ungated(act: Callable[[Array], Array], residuals: Any, grad: Array) -> tuple[Array, Array]:
    gate, x = residuals
    (dgate,) = jax.vjp(act, gate)[1](grad * x)
    dgate, grad, gate = jax.lax.optimization_barrier((dgate, grad, gate))
    return tuple(jax.lax.optimization_barrier((dgate, grad * act(gate))))


_in_turn_gated.defvjp(_gated, _ungated)


def _names(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def _without_fsdp(axes: Any) -> str | None:
    return next((name for name in _names(axes) if name != "fsdp"), None)


def _divides(mesh: AbstractMesh, spec: PartitionSpec, x: Array) -> bool:
    return all(n % ways_of(mesh.shape, axes) == 0 for axes, n in zip(spec, x.shape, strict=True))


def rows(x: Array, kernel: Array, dtype: Any = None) -> Array:
    """x W of one matrix, not a batch of them: XLA transposes batched operands of the kernel's
    gradient. In x's dtype, or as `matmul` says."""
    flat = x.reshape(-1, x.shape[-1])
    few = kernel.dtype == jnp.bfloat16 and len(flat) <= FEW
    if dtype is None and is_float8(*flat.shape, kernel.shape[1]):
        y = float8_matmul(flat, kernel)
    elif is_narrow(*flat.shape, kernel.shape[1]):
        y = narrow_matmul(flat, kernel, dtype=dtype)
    elif dtype is not None and not (few and x.dtype == jnp.float32):
        y = _summed(flat, kernel.astype(x.dtype)).astype(dtype)
    elif few:
        y = _few(flat, kernel)
    else:
        y = flat @ kernel.astype(x.dtype)
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def _summed(x: Array, kernel: Array) -> Array:
    """x W, summed and given in float32."""
    if len(x) == 1 and x.dtype == jnp.bfloat16:  # of one row XLA has none on CPUs, see `_few`
        return _summed(jnp.concatenate([x, x]), kernel)[:1]
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def halves(x: Array) -> Array:
    """float32 (rows, in) as bfloat16 (2 rows, in): below, what rounding leaves of each row."""
    high = x.astype(jnp.bfloat16)
    return jnp.concatenate([high, (x - high.astype(x.dtype)).astype(jnp.bfloat16)])


@jax.custom_jvp
def _few(x: Array, kernel: Array) -> Array:
    """x W of a few rows by a bfloat16 kernel, as when tokens are generated.

    On CPUs XLA has products of bfloat16 that give float32; for others it makes a float32 kernel
    each time. Rows in float32 are multiplied as sums of two in bfloat16, of 16 bits together.
    """

    def narrow(x: Array, kernel: Array) -> Array:
        if x.dtype == jnp.bfloat16:
            return _summed(x, kernel).astype(x.dtype)
        high, low = jnp.split(_summed(halves(x), kernel), 2)
        return high + low

    def plain(x: Array, kernel: Array) -> Array:
        return x @ kernel.astype(x.dtype)

    return jax.lax.platform_dependent(x, kernel, cpu=narrow, default=plain)


_few.defjvps(
    lambda dx, _, x, kernel: dx @ kernel.astype(x.dtype),
    lambda dkernel, _, x, kernel: x @ dkernel.astype(x.dtype),
)


def _local(
    x: Array,
    kernel: Array,
    *,
    dimension: int | None,
    summed: str | None,
    others: tuple[str, ...],
    columns: tuple[str, ...],
    dtype: Any,
) -> Array:
    # Said here, so that the gradient is summed over other axes once it is scattered over fsdp.
    kernel = jax.lax.pcast(kernel, others, to="varying") if others else kernel
    x = jax.lax.pcast(x, columns, to="varying") if columns else x
    y = rows(x, kernel if dimension is None else gather(kernel, "fsdp", dimension), dtype)
    return jax.lax.psum(y, summed) if summed else y
