"""Products with weights in int8."""

import jax
import jax.numpy as jnp

Array = jax.Array
FEW = 64  # rows, of which a product takes as long as reading the kernel


def int8_product(x: Array, codes: Array, scales: Array, transposed: bool = False) -> Array:
    """x W in float32.

    Args:
        x: (..., in).
        codes: (in, out), int8; `transposed`: (out, in).
        scales: (out,), of the outputs.
        transposed: as the codes lie.
    """
    equation = "...i,oi->...o" if transposed else "...i,io->...o"
    return jnp.einsum(equation, x.astype(jnp.float32), codes.astype(jnp.float32)) * scales
