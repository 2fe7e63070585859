"""LoKr (Yeh et al. 2024, LyCORIS): a Kronecker product as the update of chosen projections."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.initializers import SCALED_UNIFORM, ZEROS, Init
from ftjax.methods.low_rank import LowRank


def factors(size: int, factor: int) -> tuple[int, int]:
    """(m, n) with m n = size and m ≤ n: m is `factor` where it divides, else the divider nearest
    below it and √size; −1 sets √size alone."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    m = next(m for m in range(most, 0, -1) if size % m == 0)
    return m, size // m


@dataclass(frozen=True)
class Lokr(LowRank):
    """y = x W + b + (α/r) · x ΔW with ΔW = w1 ⊗ w2 (LyCORIS, eq. 6).

    With in = m n and out = l k, w1 has shape (m, l) and w2 (n, k), the transposes of `peft`'s
    LoKrConfig, to which it is equal. w2 = w2_b w2_a of rank r where r is below half its larger
    side; so is w1 with `decompose_both`. ΔW is never made: x as a matrix (m, n) is multiplied by
    both sides. The head is trained too. The fewest parameters of its kin: for updates of full
    rank on a small budget.

    Attributes:
        factor: see `factors`.
        decompose_both: w1 has low rank too.
        init: "zero" (w1 zero: the identity) or "random" (all uniform).
    """

    factor: Annotated[int, "[-1, inf)"] = -1
    decompose_both: bool = False
    init: Literal["zero", "random"] = "zero"

    group: ClassVar[str] = "lokr"
    leaves: ClassVar = tuple(f"lokr_w{i}{side}" for i in (1, 2) for side in ("", "_a", "_b"))
    non_identity: ClassVar = {"init": "random"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.factor != 0, "method.factor=0 must be positive or -1")

    def update(self, module: nn.Module, x: jax.Array, features: int) -> jax.Array:
        (m, n), (outer, inner) = (factors(size, self.factor) for size in (x.shape[-1], features))

        def multiply(z: jax.Array, name: str, size: int, init: Init) -> jax.Array:
            """z (..., rows) times the factor (rows, size), or times its two factors."""
            rows = z.shape[-1]
            steps = [(name, (rows, size), init)]
            if self.rank < max(rows, size) / 2 and (self.decompose_both or name == "lokr_w2"):
                one, two = (f"{name}_b", (rows, self.rank)), (f"{name}_a", (self.rank, size))
                steps = [(*one, SCALED_UNIFORM), (*two, init)]
            for key, shape, start in steps:
                z = z @ leaf(module, key, start, shape, (None, None)).astype(z.dtype)
            return z

        z = multiply(x.reshape(*x.shape[:-1], m, n), "lokr_w2", inner, SCALED_UNIFORM)
        start = SCALED_UNIFORM if self.init == "random" else ZEROS
        z = multiply(z.swapaxes(-1, -2), "lokr_w1", outer, start)
        return z.swapaxes(-1, -2).reshape(*x.shape[:-1], features) * self.scale

    def merged(self, kernel: jax.Array, **leaves: jax.Array) -> jax.Array:
        """W + (α/r) w1 ⊗ w2."""
        one, two = (
            leaves[name] if name in leaves else leaves[f"{name}_b"] @ leaves[f"{name}_a"]
            for name in ("lokr_w1", "lokr_w2")
        )
        product = jnp.einsum("...ml,...nk->...mnlk", one, two).reshape(kernel.shape)
        return kernel + product * self.scale
