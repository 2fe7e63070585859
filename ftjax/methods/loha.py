"""LoHa (Hyeon-Woo et al. 2022, FedPara; LyCORIS): a Hadamard product of two low-rank updates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from ftjax.base_model import Base
from ftjax.methods.additive import LowRank
from ftjax.methods.base import Interceptor, at, leaf, nested
from ftjax.methods.factors import product
from ftjax.parallel.product import matmul

# U(−1/√n, 1/√n) for a matrix of n rows, which is kaiming_uniform(a=√5) of its transpose.
UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclass(frozen=True)
class Loha(LowRank):
    """y = x W + b + (α/r) · x ΔW with ΔW = (w1_b w1_a) ∘ (w2_b w2_a) (FedPara, prop. 1).

    w1_b and w2_b have shape (in, r), w1_a and w2_a (r, out), as the transposes of `peft`'s
    LoHaConfig, to which it is equal: 2r (in + out) parameters a projection. ΔW can have rank r²,
    where LoRA's with as many parameters has 2r. Up to about r² = in · out / (in + out) it is not
    made: the rows' products of w1_b and w2_b (in, r²) and the columns' of w1_a and w2_a (r², out)
    are its factors, and cost less. The head is trained too.

    Attributes:
        init: "zero" (w2_b zero: the identity) or "random" (all uniform).
    """

    init: Literal["zero", "random"] = "zero"

    group: ClassVar[str] = "loha"
    leaves: ClassVar = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    non_identity: ClassVar = {"init": "random"}

    def interceptor(self, base: Base) -> Interceptor:
        return nested(*(at(modules, method.adapted) for method, modules in self.variants(base)))

    def adapted(self, module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
        """What an adapted projection gives."""
        y, (into, out) = call(x), module.axes
        last = UNIFORM if self.init == "random" else nn.initializers.zeros

        def factor(name: str, init: Callable) -> jax.Array:
            wide = name.endswith("a")
            shape = (self.rank, y.shape[-1]) if wide else (x.shape[-1], self.rank)
            axes = ("rank", out) if wide else (into, "rank")
            return leaf(module, f"hada_{name}", init, shape, axes).astype(y.dtype)

        leaves = {f"hada_{n}": factor(n, UNIFORM) for n in ("w1_a", "w1_b", "w2_a")}
        leaves["hada_w2_b"] = factor("w2_b", last)
        x = x.astype(y.dtype)
        if whole_is_cheaper(x.size // x.shape[-1], x.shape[-1], self.rank, y.shape[-1]):
            return y + matmul(x, update(**leaves), module.axes) * self.scale
        return y + product(module, x, *hadamard_factors(**leaves)) * self.scale

    def merged(self, kernel: jax.Array, **leaves: jax.Array) -> jax.Array:
        """W + (α/r) ΔW."""
        return kernel + update(**leaves) * self.scale


def update(
    hada_w1_a: jax.Array, hada_w1_b: jax.Array, hada_w2_a: jax.Array, hada_w2_b: jax.Array
) -> jax.Array:
    """ΔW (..., in, out)."""
    return (hada_w1_b @ hada_w1_a) * (hada_w2_b @ hada_w2_a)


def hadamard_factors(
    hada_w1_a: jax.Array, hada_w1_b: jax.Array, hada_w2_a: jax.Array, hada_w2_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Factors of ΔW: (in, r²) and (r², out)."""
    left = hada_w1_b[:, :, None] * hada_w2_b[:, None]
    right = hada_w1_a[:, None] * hada_w2_a[None]
    return left.reshape(len(left), -1), right.reshape(-1, right.shape[-1])


def whole_is_cheaper(rows: int, size: int, rank: int, features: int) -> bool:
    """Whether x ΔW takes fewer multiplications by ΔW than through its factors."""
    whole = rows * size * features + 2 * rank * size * features
    return whole < (rows + 1) * rank**2 * (size + features)
