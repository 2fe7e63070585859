"""DoRA (Liu et al. 2024): the magnitude and the direction of weights learn apart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.methods.initializers import ONES
from ftjax.methods.interception import Interceptor, at, dropped, given, leaf, nested
from ftjax.methods.lora import Lora
from ftjax.methods.low_rank import product
from ftjax.methods.relay import Relay
from ftjax.paths import Flat


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
        kernel: Relay[jax.Array] = Relay()

        def adapted(module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
            y = call(x)
            return self.scaled(module, kernel.value, x.astype(y.dtype), y)

        multiplied_by = kernel.at(modules, lambda module, x, weight: weight, "product")
        return nested(multiplied_by, at(modules, adapted))

    def scaled(self, module: nn.Module, kernel: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        """The adapted output, from y = x W + b."""
        a, b = self.factors(module, *kernel.shape)
        ratio = self.ratio(kernel, a, b, *magnitudes(module, y.shape[-1])).astype(y.dtype)
        bias = jnp.asarray(nn.unbox(module.get_variable("params", "bias", 0.0)), y.dtype)
        update = self.scale * product(module, dropped(module, x, self.dropout), a, b)
        # Added to y, so that a ratio of one leaves it as it is, to the bit.
        return y + (ratio - 1) * (y - bias) + ratio * update

    def read_off(self, module: nn.Module, call: Callable, size: int) -> jax.Array:
        kernel = call(size)
        a, b = self.factors(module, *kernel.shape)
        ratio = self.ratio(kernel, a, b, *magnitudes(module, kernel.shape[-1]))
        return kernel + (ratio - 1) * kernel + ratio * self.scale * (a @ b)

    def prepared(self, module: nn.Module, call: Callable) -> None:
        super().prepared(module, call)
        magnitudes(module, module.features)

    def looked_up(self, module: nn.Module, call: Callable, ids: jax.Array) -> jax.Array:
        y = call(ids)
        leaves = (given(module, name) for name in self.leaves)
        ratio = self.ratio(module.embedding, *leaves).astype(y.dtype)
        return y + (ratio - 1) * y + ratio * self.update_of_words(module, ids, y.dtype)

    def ratio(
        self, kernel: jax.Array, a: jax.Array, b: jax.Array, m: jax.Array, n0: jax.Array
    ) -> jax.Array:
        """m / n."""
        growth = self.growth(kernel.astype(jnp.float32), a, b, n0)
        return m / n0 / jax.lax.stop_gradient(growth)

    def growth(self, kernel: jax.Array, a: jax.Array, b: jax.Array, n0: jax.Array) -> jax.Array:
        """n / n₀ without forming W + s A B: n² = n₀² + 2s Σ (AᵀW) ∘ B + s² Σ (AᵀA B) ∘ B.

        With B = 0 it is one to the bit, however the sums are computed.
        """
        added = 2 * (a.T @ kernel) + self.scale * (a.T @ a) @ b
        squared = 1 + self.scale * (added * b).sum(0) / jnp.square(n0)
        return jnp.sqrt(jnp.maximum(squared, 1e-12))

    def first(self, weight: jax.Array, **leaves: jax.Array) -> Flat:
        return dict.fromkeys(("lora_m", "lora_n0"), norms(weight))

    def merged(
        self, kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array, lora_m: jax.Array, **_: Any
    ) -> jax.Array:
        """(W + s A B) · m/n."""
        whole = super().merged(kernel, lora_a, lora_b)
        return whole * (lora_m / norms(whole))[..., None, :]


def magnitudes(module: nn.Module, size: int) -> tuple[jax.Array, jax.Array]:
    """m and n₀ of a module."""
    m = leaf(module, "lora_m", ONES, (size,), module.axes[1:])
    return m, leaf(module, "lora_n0", ONES, (size,), module.axes[1:])


def norms(kernel: jax.Array) -> jax.Array:
    """The norm of what each output takes from the inputs: (..., in, out) → (..., out)."""
    return jnp.sqrt(jnp.square(jnp.asarray(kernel, jnp.float32)).sum(-2))
