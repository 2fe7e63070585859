"""LoRA (Hu et al. 2022): a low-rank update beside chosen projections."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.dropout import dropout
from ftjax.errors import require
from ftjax.methods.base import FREEZE_REST, Interceptor, Method, at, head_rule, leaf, low_rank
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
    LoraConfig. The head is trained too; BERT's pooler is not, as in `peft`. Variants change the
    scale, the update, or what is merged; names of all their leaves begin with "lora_".

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

    inits: ClassVar[tuple[str, ...]] = ("kaiming", "gaussian", "random")
    trained: ClassVar[str] = "ab"  # which of the leaves lora_* train
    non_identity: ClassVar[dict[str, Any]] = {"init": "random"}

    def __post_init__(self) -> None:
        require(self.rank > 0, f"method.rank must be positive, got {self.rank}")
        require(0 <= self.dropout < 1, f"method.dropout must be in [0, 1), got {self.dropout}")
        known = self.init in self.inits
        require(known, f"method.init={self.init!r} must be one of {self.inits}")

    @property
    def scale(self) -> float:
        """s, what the update is multiplied by."""
        return self.alpha / self.rank

    def rules(self, base: Base) -> Rules:
        return ((rf".*/lora_[{self.trained}]", "lora"), head_rule(base), FREEZE_REST)

    def matched(self, base: Base) -> dict[str, tuple[int, int]]:
        """Module paths of the adapted projections → (in, out)."""
        return low_rank(base, self.targets, self.rank)

    def interceptor(self, base: Base) -> Interceptor:
        return at(self.matched(base), self.adapted)

    def adapted(self, module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
        """What an adapted projection gives."""
        y = call(x)
        return y + self.update(module, x.astype(y.dtype), y.shape[-1])

    def update(self, module: nn.Module, x: jax.Array, features: int) -> jax.Array:
        """s · dropout(x) A B, in x's dtype."""
        a, b = self.factors(module, x.shape[-1], features)
        return product(self.dropped(module, x), a, b) * self.scale

    def factors(self, module: nn.Module, size: int, features: int) -> tuple[jax.Array, jax.Array]:
        """A and B of a projection."""
        init_a = nn.initializers.normal(1 / self.rank) if self.init == "gaussian" else _uniform
        init_b = _uniform if self.init == "random" else nn.initializers.zeros
        into, out = module.axes
        a = leaf(module, "lora_a", init_a, (size, self.rank), (into, "rank"))
        return a, leaf(module, "lora_b", init_b, (self.rank, features), ("rank", out))

    def dropped(self, module: nn.Module, x: jax.Array) -> jax.Array:
        """The update's input, after dropout in training."""
        if self.dropout and module.has_rng("dropout"):
            return dropout(module.make_rng("dropout"), x, self.dropout)
        return x

    def merge(self, params: Flat) -> Flat:
        """Layer by layer where layers are stacked."""
        merged = {path: leaf for path, leaf in params.items() if "/lora_" not in path}
        for module, leaves in adapters(params).items():
            kernel = merged[f"{module}/kernel"]
            merged[f"{module}/kernel"] = self.merged(kernel, **leaves).astype(kernel.dtype)
        return merged

    def merged(self, kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array) -> jax.Array:
        """W + s A B."""
        return kernel + self.scale * (lora_a @ lora_b)


def product(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """x A B in x's dtype, through the low rank."""
    return (x @ a.astype(x.dtype)) @ b.astype(x.dtype)


def adapters(params: Mapping[str, Any]) -> dict[str, Flat]:
    """Module path → its leaves lora_*, by name."""
    found: dict[str, Flat] = {}
    for path, value in params.items():
        module, _, name = path.rpartition("/")
        if name.startswith("lora_"):
            found.setdefault(module, {})[name] = value
    return found
