"""(IA)³ (Liu et al. 2022): keys, values and the inner activations of feed-forward are rescaled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax

from ftjax.errors import require
from ftjax.methods.base import FREEZE_REST, Interceptor, Method, at, head_rule, leaf, nested
from ftjax.partition import Rules
from ftjax.paths import Base, Flat

NONE = ("none", ("none",))


@dataclass(frozen=True)
class Ia3(Method):
    """y = l ∘ (x W + b) for `targets`, y = (l ∘ x) W + b for `feedforward` (§3.3).

    A vector l starts at one: out parameters a target, in parameters a feed-forward projection.
    Equal to `peft`'s IA3Config over the same projections; its own choice for BERT also has the
    attention's output, whose name ends as the feed-forward's does. The head is trained too. It
    wants a learning rate a hundred times that of full fine-tuning, and little data.

    Attributes:
        targets: projections whose output is rescaled, see `Base.match`; empty for keys and values.
        feedforward: those whose input is; empty for feed-forward's last, "none" for none.
        init: "ones" (the identity) or "random" (N(1, 0.1)).
    """

    targets: str | tuple[str, ...] = ()
    feedforward: str | tuple[str, ...] = ()
    init: str = "ones"

    non_identity: ClassVar = {"init": "random"}

    def __post_init__(self) -> None:
        known = ("ones", "random")
        require(self.init in known, f"method.init={self.init!r} must be one of {known}")

    def rules(self, base: Base) -> Rules:
        return ((r".*/ia3_(in|out)", "ia3"), head_rule(base), FREEZE_REST)

    def interceptor(self, base: Base) -> Interceptor:
        outputs = base.match(self.targets or ("key", "value"))
        inputs = {} if self.feedforward in NONE else base.match(self.feedforward or ("down",))
        both = sorted(outputs.keys() & inputs.keys())
        require(not both, f"method.feedforward and method.targets both select {both[:1]}")

        def init(key: jax.Array, *shape) -> jax.Array:
            ones = nn.initializers.ones(key, *shape)
            return ones + nn.initializers.normal(0.1 * (self.init == "random"))(key, *shape)

        def out(module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
            y = call(x)
            return y * leaf(module, "ia3_out", init, y.shape[-1:], module.axes[1:]).astype(y.dtype)

        def into(module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
            scale = leaf(module, "ia3_in", init, x.shape[-1:], module.axes[:1])
            return call(x * scale.astype(x.dtype))

        return nested(at(outputs, out), at(inputs, into))

    def merge(self, params: Flat) -> Flat:
        """W and b times l, layer by layer where layers are stacked."""
        merged = {path: x for path, x in params.items() if not path.endswith(("_in", "_out"))}
        for path, scale in params.items():
            module, _, name = path.rpartition("/")
            kernel, bias = f"{module}/kernel", f"{module}/bias"
            if name == "ia3_in":
                merged[kernel] = (merged[kernel] * scale[..., None]).astype(merged[kernel].dtype)
            elif name == "ia3_out":
                merged[kernel] = (merged[kernel] * scale[..., None, :]).astype(merged[kernel].dtype)
                if bias in merged:
                    merged[bias] = (merged[bias] * scale).astype(merged[bias].dtype)
        return merged
