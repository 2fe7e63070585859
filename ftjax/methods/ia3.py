"""(IA)³ (Liu et al. 2022): keys, values and the inner activations of feed-forward are rescaled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.additive import Additive, Shape
from ftjax.methods.initializers import ONES
from ftjax.methods.interception import Interceptor, at, nested

NONE = ("none", ("none",))


@dataclass(frozen=True)
class Ia3(Additive):
    """y = l ∘ (x W + b) for `targets`, y = (l ∘ x) W + b for `feedforward` (§3.3).

    A vector l starts at one: out parameters a target, in parameters a feed-forward projection.
    Equal to `peft`'s IA3Config over the same projections; its own choice for BERT also has the
    attention's output, whose name ends as the feed-forward's does. The head is trained too. It
    wants a learning rate a hundred times that of full fine-tuning, and little data.

    Attributes:
        targets: projections whose output is rescaled, as in LoRA; empty for keys and values,
            "none" for none where there is `feedforward`.
        feedforward: those whose input is; empty for feed-forward's last, "none" for none.
        init: "ones" (the identity) or "random" (N(1, 0.1)).
    """

    feedforward: str | tuple[str, ...] = ()
    init: Literal["ones", "random"] = "ones"

    group: ClassVar[str] = "ia3"
    leaves: ClassVar[tuple[str, ...]] = ("ia3_in", "ia3_out")
    non_identity: ClassVar = {"init": "random"}

    def outputs(self, base: Base) -> dict[str, Shape]:
        """Projections whose output is rescaled."""
        if self.targets in NONE and self.feedforward not in NONE:
            return {}
        return base.match(self.targets or ("key", "value"))

    def inputs(self, base: Base) -> dict[str, Shape]:
        """Projections whose input is."""
        return {} if self.feedforward in NONE else base.match(self.feedforward or ("down",))

    def selected(self, base: Base) -> dict[str, Shape]:
        outputs, inputs = self.outputs(base), self.inputs(base)
        both = sorted(outputs.keys() & inputs.keys())
        require(not both, f"method.feedforward and method.targets both select {both[:1]}")
        return outputs | inputs

    def on(self, base: Base, modules: frozenset[str]) -> Interceptor:
        outputs, inputs = self.outputs(base), self.inputs(base)
        return nested(at(outputs, self.rescaled), at(inputs, self.of_rescaled))

    def rescaled(self, module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
        """l ∘ (x W + b)."""
        y = call(x)
        factor = leaf(module, "ia3_out", self.start, y.shape[-1:], module.axes[1:])
        return y * factor.astype(y.dtype)

    def of_rescaled(self, module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
        """(l ∘ x) W + b."""
        factor = leaf(module, "ia3_in", self.start, x.shape[-1:], module.axes[:1])
        return call(x * factor.astype(x.dtype))

    def start(self, key: jax.Array, *shape: Any) -> jax.Array:
        """l at first."""
        deviation = nn.initializers.normal(0.1 * (self.init == "random"))
        return ONES(key, *shape) + deviation(key, *shape)

    def merged(self, kernel: jax.Array, **leaves: jax.Array) -> jax.Array:
        """W times l, of its inputs or of its outputs."""
        if "ia3_in" in leaves:
            return kernel * leaves["ia3_in"][..., None]
        return kernel * leaves["ia3_out"][..., None, :]

    def merged_bias(self, bias: jax.Array, **leaves: jax.Array) -> jax.Array:
        return bias if "ia3_in" in leaves else bias * leaves["ia3_out"]
