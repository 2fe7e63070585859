"""LoHa (Hyeon-Woo et al. 2022, FedPara; LyCORIS): a Hadamard product of two low-rank updates."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from ftjax.leaf import leaf
from ftjax.methods.initializers import SCALED_UNIFORM, ZEROS, Init
from ftjax.methods.low_rank import LowRank, product
from ftjax.parallel.product import matmul

Array = jax.Array


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

    def update(self, module: nn.Module, x: Array, features: int) -> Array:
        into, out = module.axes

        def factor(name: str, init: Init = SCALED_UNIFORM) -> Array:
            wide = name.endswith("a")
            shape = (self.rank, features) if wide else (x.shape[-1], self.rank)
            axes = ("rank", out) if wide else (into, "rank")
            return leaf(module, name, init, shape, axes).astype(x.dtype)

        last = SCALED_UNIFORM if self.init == "random" else ZEROS
        leaves = {name: factor(name) for name in self.leaves[:3]}
        leaves["hada_w2_b"] = factor("hada_w2_b", last)
        if whole_is_cheaper(x.size // x.shape[-1], x.shape[-1], self.rank, features):
            return matmul(x, difference(**leaves), module.axes) * self.scale
        return product(module, x, *hadamard_factors(**leaves)) * self.scale

    def merged(self, kernel: Array, **leaves: Array) -> Array:
        """W + (α/r) ΔW."""
        return kernel + difference(**leaves) * self.scale


def difference(hada_w1_a: Array, hada_w1_b: Array, hada_w2_a: Array, hada_w2_b: Array) -> Array:
    """ΔW (..., in, out)."""
    return (hada_w1_b @ hada_w1_a) * (hada_w2_b @ hada_w2_a)


def hadamard_factors(
    hada_w1_a: Array, hada_w1_b: Array, hada_w2_a: Array, hada_w2_b: Array
) -> tuple[Array, Array]:
    """Factors of ΔW: (in, r²) and (r², out)."""
    left = hada_w1_b[:, :, None] * hada_w2_b[:, None]
    right = hada_w1_a[:, None] * hada_w2_a[None]
    return left.reshape(len(left), -1), right.reshape(-1, right.shape[-1])


def whole_is_cheaper(rows: int, size: int, rank: int, features: int) -> bool:
    """Whether x ΔW takes fewer multiplications by ΔW than through its factors."""
    whole = rows * size * features + 2 * rank * size * features
    return whole < (rows + 1) * rank**2 * (size + features)
