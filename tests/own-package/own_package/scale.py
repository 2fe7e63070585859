"""A method: a vector that scales every feed-forward block."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax

from ftjax.base_model import Base
from ftjax.leaf import leaf
from ftjax.methods.interception import Interceptor, at
from ftjax.methods.method import FREEZE_REST, Method, head_rule
from ftjax.partition import Rules


@dataclass(frozen=True)
class Scale(Method):
    """h ← h · (1 + s), s learned, after every feed-forward block.

    Attributes:
        start: of s.
    """

    start: float = 0.0
    non_identity: ClassVar = {"start": 0.5}  # changes the model at step 0

    def rules(self, base: Base) -> Rules:
        return ((r".*/ffn/scale", "scale"), head_rule(base), FREEZE_REST)

    def interceptor(self, base: Base) -> Interceptor:
        init = nn.initializers.constant(self.start)

        def scaled(module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
            h = call(x)
            return h * (1 + leaf(module, "scale", init, h.shape[-1:], (None,)).astype(h.dtype))

        return at(base.modules("ffn"), scaled)
