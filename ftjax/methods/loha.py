"""LoHa (Hyeon-Woo et al. 2022, FedPara; LyCORIS): a Hadamard product of two low-rank updates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import require
from ftjax.methods.base import FREEZE_REST, Interceptor, Method, at, head_rule, leaf
from ftjax.methods.factors import low_rank
from ftjax.partition import Rules
from ftjax.paths import Base, Flat

# U(−1/√n, 1/√n) for a matrix of n rows, which is kaiming_uniform(a=√5) of its transpose.
UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclass(frozen=True)
class Loha(Method):
    """y = x W + b + (α/r) · x ΔW with ΔW = (w1_b w1_a) ∘ (w2_b w2_a) (FedPara, prop. 1).

    w1_b and w2_b have shape (in, r), w1_a and w2_a (r, out), as the transposes of `peft`'s
    LoHaConfig, to which it is equal: 2r (in + out) parameters a projection. ΔW can have rank r²,
    where LoRA's with as many parameters has 2r. It is never made: the rows' products of w1_b and
    w2_b (in, r²) and the columns' of w1_a and w2_a (r², out) are its factors. The head is trained
    too.

    Attributes:
        rank: r.
        alpha: α.
        targets: projections to adapt, see `Base.match`; empty for the family's default.
        init: "zero" (w2_b zero: the identity) or "random" (all uniform).
    """

    rank: int = 8
    alpha: float = 8.0
    targets: str | tuple[str, ...] = ()
    init: str = "zero"

    non_identity: ClassVar = {"init": "random"}

    def __post_init__(self) -> None:
        require(self.rank > 0, f"method.rank must be positive, got {self.rank}")
        known = ("zero", "random")
        require(self.init in known, f"method.init={self.init!r} must be one of {known}")

    def rules(self, base: Base) -> Rules:
        return ((r".*/hada_w[12]_[ab]", "loha"), head_rule(base), FREEZE_REST)

    def interceptor(self, base: Base) -> Interceptor:
        last = UNIFORM if self.init == "random" else nn.initializers.zeros

        def adapted(module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
            y, (into, out) = call(x), module.axes

            def factor(name: str, init: Callable) -> jax.Array:
                wide = name.endswith("a")
                shape = (self.rank, y.shape[-1]) if wide else (x.shape[-1], self.rank)
                axes = ("rank", out) if wide else (into, "rank")
                return leaf(module, f"hada_{name}", init, shape, axes).astype(y.dtype)

            left = factor("w1_b", UNIFORM)[:, :, None] * factor("w2_b", last)[:, None]
            right = factor("w1_a", UNIFORM)[:, None] * factor("w2_a", UNIFORM)[None]
            left = left.reshape(x.shape[-1], -1)
            right = right.reshape(-1, y.shape[-1])
            return y + (x.astype(y.dtype) @ left) @ right * (self.alpha / self.rank)

        return at(low_rank(base, self.targets, self.rank), adapted)

    def merge(self, params: Flat) -> Flat:
        """W + (α/r) ΔW, layer by layer where layers are stacked."""
        merged = {path: x for path, x in params.items() if "/hada_w" not in path}
        for path in params:
            if path.endswith("/hada_w1_a"):
                module = path.removesuffix("/hada_w1_a")
                kernel = merged[f"{module}/kernel"]
                one, two = (
                    jnp.matmul(params[f"{module}/hada_w{i}_b"], params[f"{module}/hada_w{i}_a"])
                    for i in (1, 2)
                )
                update = one * two * (self.alpha / self.rank)
                merged[f"{module}/kernel"] = (kernel + update).astype(kernel.dtype)
        return merged
