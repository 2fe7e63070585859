"""LoKr (Yeh et al. 2024, LyCORIS): a Kronecker product as the update of chosen projections."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import require
from ftjax.methods.base import FREEZE_REST, Interceptor, Method, at, head_rule, leaf
from ftjax.methods.factors import low_rank
from ftjax.methods.loha import UNIFORM
from ftjax.partition import Rules
from ftjax.paths import Base, Flat


def factors(size: int, factor: int) -> tuple[int, int]:
    """(m, n) with m n = size and m ≤ n: m is `factor` where it divides, else the divider nearest
    below it and √size; −1 sets √size alone."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = math.isqrt(size) if factor == -1 else min(factor, math.isqrt(size))
    m = next(m for m in range(most, 0, -1) if size % m == 0)
    return m, size // m


@dataclass(frozen=True)
class Lokr(Method):
    """y = x W + b + (α/r) · x ΔW with ΔW = w1 ⊗ w2 (LyCORIS, eq. 6).

    With in = m n and out = l k, w1 has shape (m, l) and w2 (n, k), the transposes of `peft`'s
    LoKrConfig, to which it is equal. w2 = w2_b w2_a of rank r where r is below half its larger
    side; so is w1 with `decompose_both`. ΔW is never made: x as a matrix (m, n) is multiplied by
    both sides. The head is trained too. The fewest parameters of its kin: for updates of full
    rank on a small budget.

    Attributes:
        rank: r.
        alpha: α.
        targets: projections to adapt, see `Base.match`; empty for the family's default.
        factor: see `factors`.
        decompose_both: w1 has low rank too.
        init: "zero" (w1 zero: the identity) or "random" (all uniform).
    """

    rank: int = 8
    alpha: float = 8.0
    targets: str | tuple[str, ...] = ()
    factor: int = -1
    decompose_both: bool = False
    init: str = "zero"

    non_identity: ClassVar = {"init": "random"}

    def __post_init__(self) -> None:
        require(self.rank > 0, f"method.rank must be positive, got {self.rank}")
        good = self.factor == -1 or self.factor > 0
        require(good, f"method.factor must be positive or -1, got {self.factor}")
        known = ("zero", "random")
        require(self.init in known, f"method.init={self.init!r} must be one of {known}")

    def rules(self, base: Base) -> Rules:
        return ((r".*/lokr_w[12](_[ab])?", "lokr"), head_rule(base), FREEZE_REST)

    def interceptor(self, base: Base) -> Interceptor:
        first = UNIFORM if self.init == "random" else nn.initializers.zeros

        def adapted(module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
            y = call(x)
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
            return y + z.swapaxes(-1, -2).reshape(y.shape) * (self.alpha / self.rank)

        return at(low_rank(base, self.targets, self.rank), adapted)

    def merge(self, params: Flat) -> Flat:
        """W + (α/r) w1 ⊗ w2, layer by layer where layers are stacked."""

        def whole(name: str) -> jax.Array:
            if name in params:
                return params[name]
            return jnp.matmul(params[f"{name}_b"], params[f"{name}_a"])

        merged = {path: x for path, x in params.items() if "/lokr_w" not in path}
        for module in {path.rsplit("/lokr_w", 1)[0] for path in params if "/lokr_w" in path}:
            kernel = merged[f"{module}/kernel"]
            one, two = whole(f"{module}/lokr_w1"), whole(f"{module}/lokr_w2")
            product = jnp.einsum("...ml,...nk->...mnlk", one, two).reshape(kernel.shape)
            update = product * (self.alpha / self.rank)
            merged[f"{module}/kernel"] = (kernel + update).astype(kernel.dtype)
        return merged
