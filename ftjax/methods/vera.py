"""VeRA (Kopiczko et al. 2024): learned vectors around random matrices that all layers share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.dropout import dropout
from ftjax.errors import require
from ftjax.methods.base import FREEZE_REST, Interceptor, Method, at, head_rule, leaf, nested
from ftjax.partition import Rules
from ftjax.paths import Base, Flat

ZEROS = nn.initializers.zeros


@dataclass(frozen=True)
class Vera(Method):
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
        targets: projections to adapt, see `Base.match`; empty for the family's default.
        seed: of A and B.
        init: "zero" (λ_b zero: the identity) or "random" (λ_b uniform).
    """

    rank: int = 256
    d_initial: float = 0.1
    dropout: float = 0.0
    targets: str | tuple[str, ...] = ()
    seed: int = 0
    init: str = "zero"

    non_identity: ClassVar = {"init": "random"}

    def __post_init__(self) -> None:
        require(self.rank > 0, f"method.rank must be positive, got {self.rank}")
        require(0 <= self.dropout < 1, f"method.dropout must be in [0, 1), got {self.dropout}")
        known = ("zero", "random")
        require(self.init in known, f"method.init={self.init!r} must be one of {known}")

    def rules(self, base: Base) -> Rules:
        return ((r".*/lambda_[bd]", "vera"), head_rule(base), FREEZE_REST)

    def interceptor(self, base: Base) -> Interceptor:
        targets = base.match(self.targets or base.default_targets)
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

    def merge(self, params: Flat) -> Flat:
        """W + (A ∘ λ_d) (B ∘ λ_b), layer by layer where layers are stacked."""
        added = ("lambda_b", "lambda_d", "vera_a", "vera_b")
        merged = {path: x for path, x in params.items() if path.rsplit("/", 1)[-1] not in added}
        a, b = params["vera_a"], params["vera_b"]
        for path in params:
            if path.endswith("/lambda_d"):
                module = path.removesuffix("/lambda_d")
                kernel = merged[f"{module}/kernel"]
                into, out = kernel.shape[-2:]
                left = a[:into] * params[path][..., None, :]
                right = b[:, :out] * params[f"{module}/lambda_b"][..., None, :]
                merged[f"{module}/kernel"] = (kernel + jnp.matmul(left, right)).astype(kernel.dtype)
        return merged
