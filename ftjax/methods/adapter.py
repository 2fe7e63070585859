"""The bottleneck adapter a(x) = up(σ(down(x))), which methods put around a frozen model's blocks.

The default init sets `up` to zero, so that training starts at the base model; init="normal" is
N(0, 0.02) for both kernels, the references' own for adapters in sequence. Biases start at zero.
Each adapter has 2dm + m + d parameters, m = d / reduction. The head is trained too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.initializers import NORMAL, ZEROS, Init
from ftjax.methods.interception import Interceptor
from ftjax.methods.layers import around, in_layers, numbers_in
from ftjax.methods.method import FREEZE_REST, Method, head_rule
from ftjax.options import Positive
from ftjax.parallel.product import matmul
from ftjax.partition import Rules

Make = Callable[[nn.Module, jax.Array], jax.Array]  # an adapter's output, made in the module
ACTIVATIONS = {
    "swish": nn.silu,
    "relu": nn.relu,
    "gelu": lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5)),
    "tanh": jnp.tanh,
}


class Adapter(nn.Module):
    """up(σ(down(x))), in x's dtype.

    Attributes:
        width: m.
        activation: σ.
        inits: of the two kernels.
    """

    width: int
    activation: str
    inits: tuple[Init, Init]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = ACTIVATIONS[self.activation](self.project(x, "down", self.width, self.inits[0]))
        return self.project(wide, "up", x.shape[-1], self.inits[1])

    def project(self, x: jax.Array, name: str, features: int, init: Init) -> jax.Array:
        axes = ("embed", "rank") if name == "down" else ("rank", "embed")
        kernel = leaf(self, f"{name}_kernel", init, (x.shape[-1], features), axes)
        bias = leaf(self, f"{name}_bias", ZEROS, (features,), axes[1:])
        return matmul(x, kernel, axes) + bias.astype(x.dtype)


@dataclass(frozen=True)
class Bottleneck(Method):
    """What the placements share; each has `placed`.

    Attributes:
        reduction: hidden size over bottleneck width.
        activation: σ.
        init: "zero" (the identity) or "normal".
        leave_out: numbers of layers without adapters, counted from 0 through all stacks.
    """

    reduction: Positive = 16
    activation: Literal[tuple(ACTIVATIONS)] = "relu"
    init: Literal["zero", "normal"] = "zero"
    leave_out: tuple[int, ...] = ()

    non_identity: ClassVar = {"init": "normal"}

    def rules(self, base: Base) -> Rules:
        return ((r".*/adapter(/.*|_scale)", "adapter"), head_rule(base), FREEZE_REST)

    def cuts(self, layers: int) -> tuple[int, ...]:
        return around(self.leave_out)

    def interceptor(self, base: Base) -> Interceptor:
        return self.placed(base, self.adapter)

    def placed(self, base: Base, adapter: Make) -> Interceptor:
        """Puts adapters where the method wants them."""
        raise NotImplementedError

    def adapter(self, module: nn.Module, x: jax.Array) -> jax.Array:
        """The output of `module`'s adapter, made in it and named "adapter"."""
        bottleneck = partial(Adapter, self.width(x), self.activation, self.inits)
        return bottleneck(parent=module, name="adapter")(x)

    def width(self, x: jax.Array) -> int:
        """m for inputs x (..., d)."""
        width = x.shape[-1] // self.reduction
        require(width > 0, f"method.reduction={self.reduction} exceeds hidden size {x.shape[-1]}")
        return width

    @property
    def inits(self) -> tuple[Init, Init]:
        """Of the kernels `down` and `up`."""
        return NORMAL, NORMAL if self.init == "normal" else ZEROS

    def adapted(self, base: Base, modules: frozenset[str]) -> frozenset[str]:
        """Those of `modules` that are not in layers left out; at least one."""
        left = in_layers(base, modules, numbers_in(base, self.leave_out, "method.leave_out"))
        require(modules > left, "method.leave_out leaves no layer to adapt")
        return modules - left
