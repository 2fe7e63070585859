"""LoRA (Hu et al. 2022): a low-rank update beside chosen projections."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.dropout import dropout
from ftjax.errors import require
from ftjax.methods.base import FREEZE_REST, Interceptor, Method, at, head_rule, leaf
from ftjax.partition import Rules
from ftjax.paths import Base, Flat


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """U(−1/√in, 1/√in), which is kaiming_uniform(a=√5) for a kernel of shape (in, rank)."""
    bound = 1.0 / math.sqrt(shape[-2])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


@dataclass(frozen=True)
class Lora(Method):
    """y = x W + b + (α/r) · dropout(x) A B, with W frozen (Hu et al. 2022, eq. 3).

    A has shape (in, r) and B (r, out); r (in + out) parameters a projection. Equal to `peft`'s
    LoraConfig. The head is trained too; BERT's pooler is not, as in `peft`.

    Attributes:
        rank: r.
        alpha: α.
        dropout: on the update's input, in training.
        targets: projections to adapt, see `Base.match`; empty for the family's default.
        init: "kaiming" (A uniform, B zero: the identity), "gaussian" (A ~ N(0, 1/r), B zero: the
            identity), or "random" (both uniform: changes the model at step 0).
    """

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    targets: str | tuple[str, ...] = ()
    init: str = "kaiming"

    non_identity: ClassVar = {"init": "random"}

    def __post_init__(self) -> None:
        require(self.rank > 0, f"method.rank must be positive, got {self.rank}")
        require(0 <= self.dropout < 1, f"method.dropout must be in [0, 1), got {self.dropout}")
        known = ("kaiming", "gaussian", "random")
        require(self.init in known, f"method.init={self.init!r} must be one of {known}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def rules(self, base: Base) -> Rules:
        return ((r".*/lora_[ab]", "lora"), head_rule(base), FREEZE_REST)

    def interceptor(self, base: Base) -> Interceptor:
        targets = base.match(self.targets or base.default_targets)
        for path, shape in targets.items():
            require(
                self.rank <= min(shape),
                f"method.rank={self.rank} exceeds the smaller side of {path!r} {shape}",
            )
        init_a = nn.initializers.normal(1 / self.rank) if self.init == "gaussian" else _uniform
        init_b = _uniform if self.init == "random" else nn.initializers.zeros

        def adapted(module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
            y = call(x)
            into, out = module.axes
            a = leaf(module, "lora_a", init_a, (x.shape[-1], self.rank), (into, "rank"))
            b = leaf(module, "lora_b", init_b, (self.rank, y.shape[-1]), ("rank", out))
            if self.dropout and module.has_rng("dropout"):
                x = dropout(module.make_rng("dropout"), x, self.dropout)
            return y + (x.astype(y.dtype) @ a.astype(y.dtype)) @ b.astype(y.dtype) * self.scale

        return at(targets, adapted)

    def merge(self, params: Flat) -> Flat:
        """W + (α/r) A B, layer by layer where layers are stacked."""
        merged = {path: leaf for path, leaf in params.items() if not path.endswith(("_a", "_b"))}
        for path in params:
            if path.endswith("/lora_a"):
                module = path.removesuffix("/lora_a")
                a, b = params[path], params[f"{module}/lora_b"]
                kernel = merged[f"{module}/kernel"]
                update = self.scale * jnp.einsum("...ir,...ro->...io", a, b)
                merged[f"{module}/kernel"] = (kernel + update).astype(kernel.dtype)
        return merged
