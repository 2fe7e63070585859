"""Bottleneck adapters: h ← h + up(σ(down(h))), around the sub-layers of a frozen model.

The default init sets `up` to zero, so that training starts at the base model; init="normal" is
the references' N(0, 0.02) for both. Either way biases start at zero.
Each adapter has 2dm + m + d parameters, m = d / reduction. The head is trained too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import require
from ftjax.methods.base import FREEZE_REST, Interceptor, Method, at, head_rule, leaf
from ftjax.partition import Rules
from ftjax.paths import Base

ACTIVATIONS = {"swish": nn.silu, "relu": nn.relu, "gelu": nn.gelu, "tanh": jnp.tanh}


class Adapter(nn.Module):
    """up(σ(down(x))), in x's dtype."""

    width: int
    activation: str
    init: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normal = nn.initializers.normal(0.02)
        up_init = normal if self.init == "normal" else nn.initializers.zeros

        def dense(x: jax.Array, name: str, init, features: int, axes: tuple) -> jax.Array:
            kernel = leaf(self, f"{name}_kernel", init, (x.shape[-1], features), axes)
            bias = leaf(self, f"{name}_bias", nn.initializers.zeros, (features,), axes[1:])
            return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)

        down = dense(x, "down", normal, self.width, ("embed", "rank"))
        return dense(
            ACTIVATIONS[self.activation](down), "up", up_init, x.shape[-1], ("rank", "embed")
        )


@dataclass(frozen=True)
class Bottleneck(Method):
    """What the placements share.

    Attributes:
        reduction: hidden size over bottleneck width.
        activation: σ.
        init: "zero" (the identity) or "normal" (N(0, 0.02), the references').
    """

    reduction: int = 16
    activation: str = "relu"
    init: str = "zero"

    non_identity: ClassVar = {"init": "normal"}

    def __post_init__(self) -> None:
        require(self.reduction > 0, f"method.reduction must be positive, got {self.reduction}")
        known = tuple(ACTIVATIONS)
        require(self.activation in known, f"method.activation must be one of {known}")
        known = ("zero", "normal")
        require(self.init in known, f"method.init={self.init!r} must be one of {known}")

    def rules(self, base: Base) -> Rules:
        return ((r".*/adapter/.*", "adapter"), head_rule(base), FREEZE_REST)

    def adapter(self, module: nn.Module, x: jax.Array) -> jax.Array:
        """The adapter of `module`, made in it and named "adapter"."""
        width = x.shape[-1] // self.reduction
        require(width > 0, f"method.reduction={self.reduction} exceeds hidden size {x.shape[-1]}")
        return Adapter(width, self.activation, self.init, parent=module, name="adapter")(x)

    def places(self, base: Base, pattern: str) -> frozenset[str]:
        """Paths of the modules named `pattern`; at least one."""
        places = base.modules(pattern)
        require(bool(places), f"the model has no module named {pattern!r} to adapt")
        return places


@dataclass(frozen=True)
class Houlsby(Bottleneck):
    """Adapters after attention and after feed-forward, before residual and norm.

    Houlsby et al. (2019), fig. 2; AdapterHub's `double_seq_bn`. BERT-base: 1,789,056.
    """

    activation: str = "swish"

    def interceptor(self, base: Base) -> Interceptor:
        places = self.places(base, "attention|ffn")

        def adapted(module: nn.Module, call: Callable, *args: jax.Array) -> jax.Array:
            h = call(*args)
            return h + self.adapter(module, h)

        return at(places, adapted)


@dataclass(frozen=True)
class Pfeiffer(Bottleneck):
    """One adapter a layer, around the norm that follows feed-forward.

    With z = feed-forward + its input: x = LN(z), out = LN(up(σ(down(x))) + z). Pfeiffer et al.
    (2021), AdapterHub's `seq_bn`. BERT-base: 894,528.

    With `up` zero, out = LN(z): the identity.
    """

    def interceptor(self, base: Base) -> Interceptor:
        places = self.places(base, "ffn_norm")
        inside: list[bool] = []  # the norm is called once more below, then without the adapter

        def adapted(module: nn.Module, call: Callable, z: jax.Array) -> jax.Array:
            if inside:
                return call(z)
            inside.append(True)
            x = module(z)
            inside.pop()
            return call(z + self.adapter(module, x))

        return at(places, adapted)
