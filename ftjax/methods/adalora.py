"""AdaLoRA (Zhang et al. 2023): a budget of ranks, moved to the layers where they matter."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.allocation import Schedule, allocated, is_e
from ftjax.methods.initializers import NORMAL, STANDARD_NORMAL, ZEROS
from ftjax.methods.interception import dropped
from ftjax.methods.lora import Lora
from ftjax.methods.low_rank import pair, product
from ftjax.methods.method import Transform
from ftjax.options import NotNegative, Positive
from ftjax.paths import Flat, expand


@dataclass(frozen=True)
class AdaLora(Lora):
    """y = x W + b + α/(r + 1e-5) · dropout(x) A diag(E) B; E's least important entries become 0.

    A penalty keeps A and B orthonormal, as in a singular value decomposition (eq. 3-4). After each
    update an element's importance is |w g|, smoothed by β₁, times its deviation from that,
    smoothed by β₂ (eqs. 9-11); a triplet's is E's plus the means of A's column and B's row. Of all
    layers' triplets the best b(t) are kept, b falling from r to r' a layer by a cubic (eq. 12),
    and after T − t_final the choice stands. r (in + out + 1) parameters a projection; `ranks`
    in result.json says what is left. For small budgets. Equal to `peft`'s AdaLoraConfig and its
    order of operations, whose r in the scale stays the first one.

    Attributes:
        rank: r, of each projection at first.
        target_rank: r', on average in the end.
        begin: t_init, steps before the budget falls; below 1 a share of all steps.
        end: t_final, steps after the last choice; below 1 a share of all steps.
        interval: ΔT, steps between two choices.
        beta1: β₁.
        beta2: β₂.
        orthogonality: what the mean of ‖AᵀA − I‖ and ‖B Bᵀ − I‖ (Frobenius) is added with.
        init: "normal" (A, B ~ N(0, 0.02), E zero: the identity) or "random" (E normal too).
    """

    rank: Positive = 12
    init: Literal["normal", "random"] = "normal"
    target_rank: Positive = 8
    begin: NotNegative = 0.1
    end: NotNegative = 0.5
    interval: Positive = 1
    beta1: Annotated[float, "(0, 1)"] = 0.85
    beta2: Annotated[float, "(0, 1)"] = 0.85
    orthogonality: NotNegative = 0.5

    leaves: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b", "lora_e")
    embeddings: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        patterns = self.rank_pattern or self.alpha_pattern
        require(not patterns, "adalora moves ranks itself: it has no rank_pattern or alpha_pattern")
        fits = self.target_rank <= self.rank
        require(fits, f"method.target_rank={self.target_rank} is not in 1 to {self.rank}")

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank + 1e-5)

    def update(self, module: nn.Module, x: jax.Array, features: int) -> jax.Array:
        a, b = pair(module, (x.shape[-1], self.rank, features), NORMAL, NORMAL)
        init_e = STANDARD_NORMAL if self.init == "random" else ZEROS
        e = leaf(module, "lora_e", init_e, (self.rank,), ("rank",))
        return product(module, dropped(module, x, self.dropout), a * e, b) * self.scale

    def merged(
        self, kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array, lora_e: jax.Array
    ) -> jax.Array:
        """W + s A diag(E) B."""
        return super().merged(kernel, lora_a * lora_e[..., None, :], lora_b)

    def penalty(self, base: Base, params: Flat) -> jax.Array:
        def distances(factor: jax.Array) -> jax.Array:
            gram = factor @ jnp.swapaxes(factor, -1, -2)
            return jnp.linalg.norm(gram - jnp.eye(self.rank), axis=(-2, -1)).reshape(-1)

        away = [
            distances(factor)
            for leaves in self.added(base, params).values()
            for factor in (jnp.swapaxes(leaves["lora_a"], -1, -2), leaves["lora_b"])
        ]
        return self.orthogonality * jnp.concatenate(away).mean()

    def optimizer(
        self, base: Base, group: str, core: Transform, rest: Transform, steps: int
    ) -> Transform:
        whole = optax.chain(core, rest)
        if group != self.group:
            return whole
        begin, end = (int(x * steps if x < 1 else x) for x in (self.begin, self.end))
        fits = begin + end < steps
        require(fits, f"method.begin={begin} and method.end={end} leave none of {steps} steps")
        schedule = Schedule(begin, steps - end, self.interval, self.target_rank / self.rank)
        return allocated(whole, schedule, self.beta1, self.beta2)

    def report(self, base: Base, params: Flat) -> dict[str, Any]:
        added = self.added(base, params)
        left = ranks({f"{path}/lora_e": leaves["lora_e"] for path, leaves in added.items()})
        return {"ranks": {"sum": sum(left.values()), "modules": left}}


def ranks(params: Mapping[str, Any]) -> dict[str, int]:
    """Unrolled module path → how many triplets are left of each adapted projection."""
    left = {}
    for path in filter(is_e, params):
        modules = expand(path.removesuffix("/lora_e"))
        counts = np.count_nonzero(np.asarray(params[path]).reshape(len(modules), -1), axis=1)
        left |= {module: int(n) for module, n in zip(modules, counts, strict=True)}
    return left
