"""PiSSA and OLoRA: LoRA that starts from the leading part of the weights themselves."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.leaf import leaf
from ftjax.methods.additive import Shape
from ftjax.methods.initializers import ZEROS
from ftjax.methods.interception import dropped
from ftjax.methods.lora import Lora
from ftjax.methods.low_rank import each_matrix, product
from ftjax.paths import Flat


@dataclass(frozen=True)
class Residual(Lora):
    """y = x W + b + s · dropout(x) (A B − A₀ B₀), A and B starting at A₀ and B₀, made from W.

    This is the published form, a base W − s A₀ B₀ under an ordinary LoRA, written as its sum. The
    references store the changed base; here W stays as it was loaded, beside frozen copies A₀ and
    B₀, so that step 0 is the identity to the bit, the adapter can be turned off, several adapters
    share a base, and the merged model is W + s (A B − A₀ B₀). Dropout is on the whole update:
    the residual form drops x A B alone, which is no update at the start. r (in + out) trainable
    parameters a projection.

    Attributes:
        init: how A₀ and B₀ are made; "random" starts at A B with A₀ B₀ = 0 (changes the model).
    """

    leaves: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b", "lora_a0", "lora_b0")
    fixed: ClassVar[tuple[str, ...]] = ("lora_a0", "lora_b0")
    embeddings: ClassVar[bool] = False

    def check(self, module: str, shape: Shape) -> None:
        super().check(module, shape)
        if self.rank > min(shape):  # a kernel has so many directions
            side = f"the smaller side of {module!r} {shape}"
            raise UserError(f"method.rank={self.rank} exceeds {side}")

    def update(self, module: nn.Module, x: jax.Array, features: int) -> jax.Array:
        a, b = self.factors(module, x.shape[-1], features)
        into, out = module.axes
        a0 = leaf(module, "lora_a0", ZEROS, a.shape, (into, "rank"))
        b0 = leaf(module, "lora_b0", ZEROS, b.shape, ("rank", out))
        x = dropped(module, x, self.dropout)
        # A B − A₀ B₀ as (A − A₀) B + A₀ (B − B₀): no two large products that cancel.
        return self.scale * (product(module, x, a - a0, b) + product(module, x, a0, b - b0))

    def first(self, weight: jax.Array, **leaves: jax.Array) -> Flat:
        if self.init == "random":
            return {}
        a, b = each_matrix(self.split, weight.astype(jnp.float32))
        a0, b0 = a.astype(leaves["lora_a0"].dtype), b.astype(leaves["lora_b0"].dtype)
        trained = {"lora_a": a0.astype(jnp.float32), "lora_b": b0.astype(jnp.float32)}
        return {"lora_a0": a0, "lora_b0": b0, **trained}

    def split(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A₀ (in, r) and B₀ (r, out) of W (in, out)."""
        raise NotImplementedError

    def merged(self, kernel: jax.Array, **leaves: jax.Array) -> jax.Array:
        """W + s (A B − A₀ B₀)."""
        a, b, a0, b0 = (leaves[f"lora_{name}"] for name in ("a", "b", "a0", "b0"))
        return kernel + self.scale * ((a - a0) @ b + a0 @ (b - b0))


@dataclass(frozen=True)
class Pissa(Residual):
    """Starts at the r leading singular triplets: s A₀ B₀ is W's best approximation of rank r.

    W = U Σ Vᵀ; A₀ = U_r √(Σ_r/s), B₀ = √(Σ_r/s) V_rᵀ (Meng et al. 2024, eqs. 2-4). Converges
    faster than LoRA from the directions that matter most in W. Equal to `peft`'s
    init_lora_weights="pissa".
    """

    init: Literal["svd", "random"] = "svd"

    def split(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        u, sigma, vt = jnp.linalg.svd(kernel, full_matrices=False)
        root = jnp.sqrt(sigma[: self.rank] / self.scale)
        return u[:, : self.rank] * root, root[:, None] * vt[: self.rank]


@dataclass(frozen=True)
class Olora(Residual):
    """Starts at orthonormal directions: Wᵀ = Q R, B₀ = Q_rᵀ and A₀ = R_rᵀ (Büyükakyüz 2024, §3).

    Q_r are the first r columns of Q, R_r the first r rows of R. Cheaper to start than PiSSA. Equal
    to `peft`'s init_lora_weights="olora", which like the authors' code scales what it takes from
    the base by s.
    """

    init: Literal["qr", "random"] = "qr"

    def split(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        q, r = jnp.linalg.qr(kernel.T)
        return r[: self.rank].T, q[:, : self.rank].T
