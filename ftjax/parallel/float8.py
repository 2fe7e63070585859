"""Products in 8-bit floats with sums in float32, which GPUs from the H100 on do twice as fast.

Operands are scaled to the range of the format by their own largest value, each time (Micikevicius
et al. 2022, arXiv:2209.05433): no scales are kept from step to step.
"""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal

Array = jax.Array
VALUES, GRADIENTS = jnp.float8_e4m3fn, jnp.float8_e5m2  # of more precision, and of more range
LEAST = 128  # of each side of a product, below which it is not worth the rounding
FLOAT8 = jax.make_user_context(False)  # whether products are such


def is_float8(*sizes: int) -> bool:
    """Whether a product of such sides (rows, summed, columns) is to be in 8-bit floats."""
    return FLOAT8.value and min(sizes) >= LEAST


@jax.custom_vjp
def float8_matmul(x: Array, y: Array) -> Array:
    """x y in x's dtype, of operands rounded to 8-bit floats; so are its gradients.

    Args:
        x: (rows, summed).
        y: (summed, columns).
    """
    return _product(*scaled(x, VALUES), *scaled(y, VALUES), (1, 0)).astype(x.dtype)


def scaled(x: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    """x in so few bits, and the float32 that it is to be multiplied by."""
    wide = x.astype(jnp.float32)
    largest, most = jnp.abs(wide).max(), jnp.finfo(dtype).max.astype(jnp.float32)
    scale = jnp.where(largest > 0, largest / most, 1.0)
    return jnp.clip(wide / scale, -most, most).astype(dtype), scale


def _product(
    x: Array, x_scale: Array, y: Array, y_scale: Array, contracted: tuple[int, int]
) -> Array:
    dimensions = tuple((axis,) for axis in contracted), ((), ())
    y = jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)
    return y * (x_scale * y_scale)


def _forward(x: CustomVJPPrimal, y: CustomVJPPrimal) -> tuple[Array, tuple]:
    left = scaled(x.value, VALUES)
    product = _product(*left, *scaled(y.value, VALUES), (1, 0)).astype(x.value.dtype)
    # Of x its 8 bits are kept, for y's gradient alone; y is there anyhow, and rounded anew.
    of_y = (left, jnp.zeros(0, y.value.dtype)) if y.perturbed else None
    return product, (y.value if x.perturbed else None, of_y)


def _backward(needed: tuple, grad: Array) -> tuple[Array | None, Array | None]:
    y, of_y = needed
    rounded = scaled(grad, GRADIENTS)
    dx = dy = None
    if y is not None:
        dx = _product(*rounded, *scaled(y, VALUES), (1, 1)).astype(grad.dtype)
    if of_y is not None:
        dy = _product(*of_y[0], *rounded, (0, 0)).astype(of_y[1].dtype)
    return dx, dy


float8_matmul.defvjp(_forward, _backward, symbolic_zeros=True)
