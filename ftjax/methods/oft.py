"""OFT (Qiu et al. 2023; Liu et al. 2024): the input of chosen projections is rotated."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.additive import Additive, Shape
from ftjax.methods.initializers import NORMAL, ZEROS


@dataclass(frozen=True)
class Oft(Additive):
    """y = (x R) W + b, with R block-diagonal and W frozen (Qiu et al. 2023, eq. 2, on the input).

    A block of size b is the rotation of a skew-symmetric matrix: (in / b) b (b − 1) / 2
    parameters a projection, zero at the start. Angles between neurons are kept. Equal to `peft`'s
    OFTConfig, whose two forms turn in opposite senses (see `rotation`). The head is trained too.

    Attributes:
        block: b, which must divide every input.
        neumann: the series instead of the Cayley transform, as in the reference by default.
        terms: of the series.
        init: "zero" (the identity) or "random" (N(0, 0.02)).
    """

    block: Annotated[int, "[2, inf)"] = 32
    neumann: bool = True
    terms: Annotated[int, "[3, 100]"] = 5
    init: Literal["zero", "random"] = "zero"

    group: ClassVar[str] = "oft"
    leaves: ClassVar[tuple[str, ...]] = ("oft_r",)
    non_identity: ClassVar = {"init": "random"}

    def check(self, module: str, shape: Shape) -> None:
        divides = f"method.block={self.block} does not divide the {shape[0]} inputs of {module!r}"
        require(shape[0] % self.block == 0, divides)

    def adapted(self, module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
        blocks = x.shape[-1] // self.block
        shape = (blocks, self.block * (self.block - 1) // 2)
        init = NORMAL if self.init == "random" else ZEROS
        q = skew(leaf(module, "oft_r", init, shape, (None, None)), self.block)
        r = rotation(q, self.neumann, self.terms).astype(x.dtype)
        parts = x.reshape(*x.shape[:-1], blocks, self.block)
        return call(jnp.einsum("...nk,nkc->...nc", parts, r).reshape(x.shape))

    def merged(self, kernel: jax.Array, oft_r: jax.Array) -> jax.Array:
        """R W."""
        r = rotation(skew(jnp.asarray(oft_r), self.block), self.neumann, self.terms)
        rows = kernel.reshape(*r.shape[:-1], kernel.shape[-1])
        return jnp.einsum("...kc,...co->...ko", r, rows).reshape(kernel.shape)


def skew(entries: jax.Array, size: int) -> jax.Array:
    """Q = U − Uᵀ, with `entries` (..., size (size − 1) / 2) above the diagonal of U."""
    rows, columns = np.triu_indices(size, 1)
    upper = jnp.zeros((*entries.shape[:-1], size, size), entries.dtype)
    upper = upper.at[..., rows, columns].set(entries)
    return upper - upper.swapaxes(-1, -2)


def rotation(q: jax.Array, neumann: bool, terms: int = 5) -> jax.Array:
    """R of skew-symmetric blocks q (..., b, b).

    With `neumann` I + 2Q + 2Q² + 2Q³ + Q⁴, so many `terms` of a series, which is near
    (I + Q)(I − Q)⁻¹ and orthogonal for small Q; else (I − Q)(I + Q)⁻¹, the Cayley transform,
    orthogonal for any.
    """
    eye = jnp.eye(q.shape[-1], dtype=q.dtype)
    if neumann:
        inner = 2 * eye + q
        for _ in range(max(terms, 4) - 3):  # of 3 terms the reference makes 4
            inner = 2 * eye + q @ inner
        return eye + q @ inner
    return jnp.linalg.solve((eye + q).swapaxes(-1, -2), (eye - q).swapaxes(-1, -2)).swapaxes(-1, -2)
