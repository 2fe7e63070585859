"""DoRA (Liu et al. 2024): the magnitude and the direction of weights learn apart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.leaf import existing_leaf, leaf
from ftjax.methods.initializers import ONES
from ftjax.methods.interception import Interceptor, at, dropped, nested
from ftjax.methods.lora import Lora
from ftjax.methods.low_rank import product
from ftjax.methods.relay import Relay
from ftjax.paths import Flat

Array = jax.Array


@dataclass(frozen=True)
class Dora(Lora):
    """y = (m/n) · (x W + s · dropout(x) A B) + b, n the norms of W + s A B (Liu et al. 2024, (5)).

    n has a number an output, taken over the inputs (of the table of words, over the vocabulary),
    and no gradient passes through it (§4.3). m starts at n₀, the norms of W, so that step 0 is the
    identity. r (in + out) + out parameters a projection. Equal to `peft`'s use_dora, except that
    with dropout `peft` also drops (m/n − 1) · x W. Closer to full fine-tuning than LoRA of the
    same rank, for some more time.

    Attributes:
        rank_stabilized: s = α/√r, as `rslora`'s, instead of α/r.
    """

    rank_stabilized: bool = False

    leaves: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b", "lora_m", "lora_n0")
    fixed: ClassVar[tuple[str, ...]] = ("lora_n0",)
    reads_weights: ClassVar[bool] = True

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)

    def on_projections(self, modules: frozenset[str]) -> Interceptor:
        kernel: Relay[Array] = Relay()

        def adapted(module: nn.Module, call: Callable, x: Array) -> Array:
            y = call(x)
            a, b = self.factors(module, *kernel.value.shape)
            ratio = self.ratio(kernel.value, a, b, *magnitudes(module, y.shape[-1])).astype(y.dtype)
            bias = jnp.asarray(nn.unbox(module.get_variable("params", "bias", 0.0)), y.dtype)
            x = dropped(module, x.astype(y.dtype), self.dropout)
            update = self.scale * product(module, x, a, b)
            # Added to y, so that a ratio of one leaves it as it is, to the bit.
            return y + (ratio - 1) * (y - bias) + ratio * update

        multiplied_by = kernel.at(modules, lambda module, x, weight: weight, "product")
        return nested(multiplied_by, at(modules, adapted))

    def read_off(self, module: nn.Module, call: Callable, size: int) -> Array:
        kernel = call(size)
        a, b = self.factors(module, *kernel.shape)
        ratio = self.ratio(kernel, a, b, *magnitudes(module, kernel.shape[-1]))
        return kernel + (ratio - 1) * kernel + ratio * self.scale * (a @ b)

    def prepared(self, module: nn.Module, call: Callable) -> None:
        super().prepared(module, call)
        magnitudes(module, module.features)

    def looked_up(self, module: nn.Module, call: Callable, ids: Array) -> Array:
        y = call(ids)
        leaves = (existing_leaf(module, name) for name in self.leaves)
        ratio = self.ratio(module.embedding, *leaves).astype(y.dtype)
        return y + (ratio - 1) * y + ratio * self.update_of_words(module, ids, y.dtype)

    def ratio(self, kernel: Array, a: Array, b: Array, m: Array, n0: Array) -> Array:
        """m / n, without forming W + s A B: n² = n₀² + 2s Σ (AᵀW) ∘ B + s² Σ (AᵀA B) ∘ B.

        With B = 0, n is n₀ to the bit, however the sums are computed.
        """
        added = 2 * (a.T @ kernel.astype(jnp.float32)) + self.scale * (a.T @ a) @ b
        squared = 1 + self.scale * (added * b).sum(0) / jnp.square(n0)
        growth = jnp.sqrt(jnp.maximum(squared, 1e-12))
        return m / n0 / jax.lax.stop_gradient(growth)

    def first(self, weight: Array, **leaves: Array) -> Flat:
        return dict.fromkeys(("lora_m", "lora_n0"), norms(weight))

    def merged(self, kernel: Array, lora_a: Array, lora_b: Array, lora_m: Array, **_: Any) -> Array:
        """(W + s A B) · m/n."""
        whole = super().merged(kernel, lora_a, lora_b)
        return whole * (lora_m / norms(whole))[..., None, :]


def magnitudes(module: nn.Module, size: int) -> tuple[Array, Array]:
    """m and n₀ of a module."""
    m = leaf(module, "lora_m", ONES, (size,), module.axes[1:])
    return m, leaf(module, "lora_n0", ONES, (size,), module.axes[1:])


def norms(kernel: Array) -> Array:
    """The norm of what each output takes from the inputs: (..., in, out) → (..., out)."""
    return jnp.sqrt(jnp.square(jnp.asarray(kernel, jnp.float32)).sum(-2))
