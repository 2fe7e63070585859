"""VeRA (Kopiczko et al. 2024): learned vectors around random matrices that all layers share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.dropout import dropout
from ftjax.errors import require
from ftjax.methods.additive import Additive
from ftjax.methods.base import Interceptor, at, leaf, nested
from ftjax.options import Positive, Seed, Share

ZEROS = nn.initializers.zeros


@dataclass(frozen=True)
class Vera(Additive):
    """y = x W + b + λ_b ∘ ((λ_d ∘ (dropout(x) A)) B), with W, A and B frozen (eq. 2).

    A (largest in, r) and B (r, largest out) are random, kaiming-uniform, the same in all layers,
    and sliced where a projection is smaller. Trained are λ_d (r,) and λ_b (out,): out + r
    parameters a projection, a tenth of LoRA's and less. Equal to `peft`'s VeraConfig but for the
    random numbers, which an exported folder holds. The head is trained too. For many adapters
    over one base; it wants a learning rate ten times LoRA's.

    Attributes:
        rank: r; above in · out, entries of λ_d are redundant, and refused.
        d_initial: λ_d at the start.
        dropout: on the update's input, in training.
        seed: of A and B.
        init: "zero" (λ_b zero: the identity) or "random" (λ_b uniform).
    """

    rank: Positive = 256
    d_initial: float = 0.1
    dropout: Share = 0.0
    seed: Seed = 0
    init: Literal["zero", "random"] = "zero"

    group: ClassVar[str] = "vera"
    leaves: ClassVar[tuple[str, ...]] = ("lambda_b", "lambda_d")
    shared: ClassVar[tuple[str, ...]] = ("vera_a", "vera_b")
    non_identity: ClassVar = {"init": "random"}

    def interceptor(self, base: Base) -> Interceptor:
        targets = self.matched(base)
        for path, (into, out) in targets.items():
            require(
                self.rank <= into * out,
                f"method.rank={self.rank} exceeds the {into * out} entries of {path!r}",
            )
        into, out = (max(shape[side] for shape in targets.values()) for side in (0, 1))
        init_b = nn.initializers.uniform(1.0) if self.init == "random" else ZEROS
        start, shared = nn.initializers.constant(self.d_initial), {}

        def projection(number: int) -> Callable[..., jax.Array]:
            key = jax.random.fold_in(jax.random.key(self.seed), number)
            return lambda _, *shape: nn.initializers.he_uniform()(key, *shape)

        def sharing(module: nn.Module, call: Callable, *args, **kwargs):
            shared["a"] = leaf(module, "vera_a", projection(0), (into, self.rank), (None, "rank"))
            shared["b"] = leaf(module, "vera_b", projection(1), (self.rank, out), ("rank", None))
            return call(*args, **kwargs)

        def adapted(module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
            y = call(x)
            size = y.shape[-1]
            d = leaf(module, "lambda_d", start, (self.rank,), ("rank",)).astype(y.dtype)
            b = leaf(module, "lambda_b", init_b, (size,), module.axes[1:]).astype(y.dtype)
            if self.dropout and module.has_rng("dropout"):
                x = dropout(module.make_rng("dropout"), x, self.dropout)
            x = x.astype(y.dtype) @ shared["a"][: x.shape[-1]].astype(y.dtype)
            return y + (d * x) @ shared["b"][:, :size].astype(y.dtype) * b

        return nested(at(targets, adapted), at({""}, sharing))

    def merged(
        self,
        kernel: jax.Array,
        lambda_b: jax.Array,
        lambda_d: jax.Array,
        vera_a: jax.Array,
        vera_b: jax.Array,
    ) -> jax.Array:
        """W + (A ∘ λ_d) (B ∘ λ_b)."""
        into, out = kernel.shape[-2:]
        left = vera_a[:into] * lambda_d[..., None, :]
        return kernel + jnp.matmul(left, vera_b[:, :out] * lambda_b[..., None, :])
