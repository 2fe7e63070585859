"""Compacter (Mahabadi et al. 2021): bottleneck adapters of hypercomplex multiplications."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.methods.adapter import ACTIVATIONS, ZERO, Adapter, Bottleneck, Init
from ftjax.methods.base import FREEZE_REST, Interceptor, at, head_rule, leaf, nested
from ftjax.methods.bottleneck import Houlsby, Pfeiffer
from ftjax.options import NotNegative, Positive
from ftjax.partition import Rules

XAVIER = nn.initializers.variance_scaling(1.0, "fan_avg", "normal", batch_axis=(0,))


class HypercomplexAdapter(Adapter):
    """An adapter whose kernels are Σᵢ Aᵢ ⊗ (Sᵢ Tᵢ), with the rule A given.

    Attributes:
        rule: A, (n, n, n).
        rank: columns of Sᵢ.
    """

    rule: jax.Array
    rank: int

    def project(self, x: jax.Array, name: str, features: int, init: Init) -> jax.Array:
        n, size = len(self.rule), x.shape[-1]
        left = leaf(self, f"{name}_left", XAVIER, (n, size // n, self.rank), (None,) * 3)
        right = leaf(self, f"{name}_right", init, (n, self.rank, features // n), (None,) * 3)
        bias = leaf(self, f"{name}_bias", ZERO, (features,), (None,))
        kernel = jnp.einsum("iab,ikl->akbl", self.rule, left @ right).reshape(size, features)
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


@dataclass(frozen=True)
class Hypercomplex(Bottleneck):
    """What both placements share: kernels Σᵢ Aᵢ ⊗ (Sᵢ Tᵢ), i ≤ n, instead of full ones.

    A (n, n, n) is one for all layers and projections, made at the model's root; Sᵢ has shape
    (in / n, r) and Tᵢ (r, out / n) (eq. 5). Tᵢ of `up` starts at zero with init="zero".

    Attributes:
        n: parts that inputs and outputs are cut into.
        rank: r.
        rule_std: of A's normal initialization.
    """

    reduction: Positive = 32
    activation: Literal[tuple(ACTIVATIONS)] = "gelu"
    n: Positive = 4
    rank: Positive = 1
    rule_std: NotNegative = 1e-4

    non_identity: ClassVar = {"init": "normal", "rule_std": 1.0}

    def rules(self, base: Base) -> Rules:
        return ((r".*/adapter/.*|phm_rule", "adapter"), head_rule(base), FREEZE_REST)

    def interceptor(self, base: Base) -> Interceptor:
        rules: list[jax.Array] = []  # of the call under way

        def model(module: nn.Module, call: Callable, *args: Any, **kwargs: Any) -> Any:
            init = nn.initializers.normal(self.rule_std)
            rules.append(leaf(module, "phm_rule", init, (self.n,) * 3, (None,) * 3))
            out = call(*args, **kwargs)
            rules.pop()
            return out

        def adapter(module: nn.Module, x: jax.Array) -> jax.Array:
            width = self._width(x)
            make = partial(HypercomplexAdapter, width, self.activation, self.inits)
            return make(rules[-1], self.rank, parent=module, name="adapter")(x)

        return nested(self.placed(base, adapter), at({""}, model))

    def _width(self, x: jax.Array) -> int:
        width, features = self.width(x), x.shape[-1]
        fits = width % self.n == 0 and features % self.n == 0
        sizes = f"hidden size {features} and bottleneck width {width} (method.reduction)"
        require(fits, f"method.n={self.n} does not divide {sizes}")
        require(
            self.rank <= width // self.n,
            f"method.rank={self.rank} exceeds {width // self.n}, a part of the bottleneck's width",
        )
        return width

    @property
    def inits(self) -> tuple[Init, Init]:
        """Of T of `down` and of `up`."""
        return XAVIER, XAVIER if self.init == "normal" else ZERO


@dataclass(frozen=True)
class Compacter(Hypercomplex, Houlsby):
    """Hypercomplex adapters after attention and after feed-forward. BERT-base: 57,088."""


@dataclass(frozen=True)
class CompacterPP(Hypercomplex, Pfeiffer):
    """Hypercomplex adapters after feed-forward alone (Compacter++). BERT-base: 28,576."""
