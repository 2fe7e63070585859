"""LoHa (Hyeon-Woo et al. 2022, FedPara; LyCORIS): a Hadamard product of two low-rank updates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.methods.additive import LowRank
from ftjax.methods.base import Interceptor, at, leaf, nested
from ftjax.paths import Base

# U(−1/√n, 1/√n) for a matrix of n rows, which is kaiming_uniform(a=√5) of its transpose.
UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclass(frozen=True)
class Loha(LowRank):
    """y = x W + b + (α/r) · x ΔW with ΔW = (w1_b w1_a) ∘ (w2_b w2_a) (FedPara, prop. 1).

    w1_b and w2_b have shape (in, r), w1_a and w2_a (r, out), as the transposes of `peft`'s
    LoHaConfig, to which it is equal: 2r (in + out) parameters a projection. ΔW can have rank r²,
    where LoRA's with as many parameters has 2r. It is never made: the rows' products of w1_b and
    w2_b (in, r²) and the columns' of w1_a and w2_a (r², out) are its factors. The head is trained
    too.

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

        left = factor("w1_b", UNIFORM)[:, :, None] * factor("w2_b", last)[:, None]
        right = factor("w1_a", UNIFORM)[:, None] * factor("w2_a", UNIFORM)[None]
        left = left.reshape(x.shape[-1], -1)
        right = right.reshape(-1, y.shape[-1])
        return y + (x.astype(y.dtype) @ left) @ right * self.scale

    def merged(self, kernel: jax.Array, **leaves: jax.Array) -> jax.Array:
        """W + (α/r) ΔW."""
        one, two = (jnp.matmul(leaves[f"hada_w{i}_b"], leaves[f"hada_w{i}_a"]) for i in (1, 2))
        return kernel + one * two * self.scale
