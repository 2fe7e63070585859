"""LoKr (Yeh et al. 2024, LyCORIS): a Kronecker product as the update of chosen projections."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.methods.additive import LowRank
from ftjax.methods.base import Interceptor, at, leaf, nested
from ftjax.methods.loha import UNIFORM


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

    def interceptor(self, base: Base) -> Interceptor:
        return nested(*(at(modules, method.adapted) for method, modules in self.variants(base)))

    def adapted(self, module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
        """What an adapted projection gives."""
        y = call(x)
        first = UNIFORM if self.init == "random" else nn.initializers.zeros
        (m, n), (outer, inner) = (factors(z.shape[-1], self.factor) for z in (x, y))

        def multiply(z: jax.Array, name: str, size: int, init: Callable) -> jax.Array:
            """z (..., rows) times the factor (rows, size), or times its two factors."""
            rows = z.shape[-1]
            steps = [(name, (rows, size), init)]
            if self.rank < max(rows, size) / 2 and (self.decompose_both or name == "lokr_w2"):
                one, two = (f"{name}_b", (rows, self.rank)), (f"{name}_a", (self.rank, size))
                steps = [(*one, UNIFORM), (*two, init)]
            for key, shape, start in steps:
                z = z @ leaf(module, key, start, shape, (None, None)).astype(z.dtype)
            return z

        z = x.astype(y.dtype).reshape(*x.shape[:-1], m, n)
        z = multiply(z, "lokr_w2", inner, UNIFORM)
        z = multiply(z.swapaxes(-1, -2), "lokr_w1", outer, first)
        return y + z.swapaxes(-1, -2).reshape(y.shape) * self.scale

    def merged(self, kernel: jax.Array, **leaves: jax.Array) -> jax.Array:
        """W + (α/r) w1 ⊗ w2."""
        one, two = (
            leaves[name] if name in leaves else leaves[f"{name}_b"] @ leaves[f"{name}_a"]
            for name in ("lokr_w1", "lokr_w2")
        )
        product = jnp.einsum("...ml,...nk->...mnlk", one, two).reshape(kernel.shape)
        return kernel + product * self.scale
