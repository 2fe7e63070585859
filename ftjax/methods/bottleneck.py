"""Bottleneck adapters: h ← h + up(σ(down(h))), around the sub-layers of a frozen model.

The default init sets `up` to zero, so that training starts at the base model; init="normal" is
the references' N(0, 0.02) for both. Either way biases start at zero.
Each adapter has 2dm + m + d parameters, m = d / reduction. The head is trained too.
"""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import require
from ftjax.methods.base import FREEZE_REST, Interceptor, Method, head_rule
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
            annotate = nn.with_logical_partitioning
            shape = (x.shape[-1], features)
            kernel = self.param(f"{name}_kernel", annotate(init, axes), shape, jnp.float32)
            zeros = annotate(nn.initializers.zeros, axes[1:])
            bias = self.param(f"{name}_bias", zeros, (features,), jnp.float32)
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

        def intercept(next_fun, args, kwargs, context):
            h = next_fun(*args, **kwargs)
            if "/".join(context.module.path) not in places or context.method_name != "__call__":
                return h
            return h + self.adapter(context.module, h)

        return intercept


@dataclass(frozen=True)
class Pfeiffer(Bottleneck):
    """One adapter a layer, around the norm that follows feed-forward.

    With z = feed-forward + its input: x = LN(z), out = LN(up(σ(down(x))) + z). Pfeiffer et al.
    (2021), AdapterHub's `seq_bn`. BERT-base: 894,528.

    With `up` zero, out = LN(z): the identity.
    """

    def interceptor(self, base: Base) -> Interceptor:
        places = self.places(base, "ffn_norm")
        inside = []  # the norm is called once more below, then without the adapter

        def intercept(next_fun, args, kwargs, context):
            module = context.module
            if "/".join(module.path) not in places or context.method_name != "__call__" or inside:
                return next_fun(*args, **kwargs)
            (z,) = args
            inside.append(True)
            x = module(z)
            inside.pop()
            return next_fun(z + self.adapter(module, x))

        return intercept
