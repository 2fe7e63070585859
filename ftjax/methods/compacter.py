"""Compacter (Mahabadi et al. 2021): bottleneck adapters of hypercomplex multiplications."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.adapter import ACTIVATIONS, Adapter, Bottleneck
from ftjax.methods.bottleneck import Houlsby, Pfeiffer
from ftjax.methods.initializers import ZEROS, Init
from ftjax.methods.interception import ROOT, Interceptor, nested
from ftjax.methods.method import FREEZE_REST, head_rule
from ftjax.methods.relay import Relay
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
        bias = leaf(self, f"{name}_bias", ZEROS, (features,), (None,))
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
        rule: Relay[jax.Array] = Relay()

        def make_rule(module: nn.Module, *_: Any, **inputs: Any) -> jax.Array:
            init = nn.initializers.normal(self.rule_std)
            return leaf(module, "phm_rule", init, (self.n,) * 3, (None,) * 3)

        def adapter(module: nn.Module, x: jax.Array) -> jax.Array:
            bottleneck = partial(HypercomplexAdapter, self._width(x), self.activation, self.inits)
            return bottleneck(rule.value, self.rank, parent=module, name="adapter")(x)

        return nested(self.placed(base, adapter), rule.at(ROOT, make_rule))

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
        return XAVIER, XAVIER if self.init == "normal" else ZEROS


@dataclass(frozen=True)
class Compacter(Hypercomplex, Houlsby):
    """Hypercomplex adapters after attention and after feed-forward. BERT-base: 57,088."""


@dataclass(frozen=True)
class CompacterPP(Hypercomplex, Pfeiffer):
    """Hypercomplex adapters after feed-forward alone (Compacter++). BERT-base: 28,576."""
