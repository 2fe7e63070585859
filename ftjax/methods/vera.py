"""VeRA (Kopiczko et al. 2024): learned vectors around random matrices that all layers share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.additive import Additive, Shape
from ftjax.methods.initializers import ZEROS, Init
from ftjax.methods.interception import ROOT, Interceptor, at, dropped, nested
from ftjax.methods.relay import Relay
from ftjax.options import Positive, Seed, Share

Array = jax.Array


@dataclass(frozen=True)
class Vera(Additive):
    """y = x W + b + λ_b ∘ ((λ_d ∘ (dropout(x) A)) B), with W, A and B frozen (eq. 2).

    A (largest in, r) and B (r, largest out) are random, kaiming-uniform, the same in all layers,
    and sliced where a projection is smaller. Trained are λ_d (r,) and λ_b (out,): out + r
    parameters a projection, a tenth of LoRA's and less. Equal to `peft`'s VeraConfig but for the
    random numbers, which an exported folder holds. The head is trained too. For many adapters
    over one base; it wants a learning rate ten times LoRA's.

    Attributes:
        rank: r; above in · out, entries of λ_d are redundant, and refused.
        d_initial: λ_d at the start.
        dropout: on the update's input, in training.
        seed: of A and B.
        init: "zero" (λ_b zero: the identity) or "random" (λ_b uniform).
    """

    rank: Positive = 256
    d_initial: float = 0.1
    dropout: Share = 0.0
    seed: Seed = 0
    init: Literal["zero", "random"] = "zero"

    group: ClassVar[str] = "vera"
    leaves: ClassVar[tuple[str, ...]] = ("lambda_b", "lambda_d")
    shared: ClassVar[tuple[str, ...]] = ("vera_a", "vera_b")
    non_identity: ClassVar = {"init": "random"}

    def check(self, module: str, shape: Shape) -> None:
        entries = shape[0] * shape[1]
        more = f"method.rank={self.rank} exceeds the {entries} entries of {module!r}"
        require(self.rank <= entries, more)

    def on(self, base: Base, modules: frozenset[str]) -> Interceptor:
        largest = [max(sizes) for sizes in zip(*self.matched(base).values(), strict=True)]
        matrices: Relay[tuple[Array, Array]] = Relay()

        def drawn(module: nn.Module, *_: Any, **inputs: Any) -> tuple[Array, Array]:
            return self.matrices(module, *largest)

        def adapted(module: nn.Module, call: Callable, x: Array) -> Array:
            y = call(x)
            return y + self.update(module, x.astype(y.dtype), y.shape[-1], *matrices.value)

        return nested(at(modules, adapted), matrices.at(ROOT, drawn))

    def matrices(self, module: nn.Module, into: int, out: int) -> tuple[Array, Array]:
        """A and B of the model."""

        def random(number: int) -> Init:
            key = jax.random.fold_in(jax.random.key(self.seed), number)
            return lambda _, *shape: nn.initializers.he_uniform()(key, *shape)

        a = leaf(module, "vera_a", random(0), (into, self.rank), (None, "rank"))
        return a, leaf(module, "vera_b", random(1), (self.rank, out), ("rank", None))

    def update(self, module: nn.Module, x: Array, features: int, a: Array, b: Array) -> Array:
        start_d = nn.initializers.constant(self.d_initial)
        start_b = nn.initializers.uniform(1.0) if self.init == "random" else ZEROS
        d = leaf(module, "lambda_d", start_d, (self.rank,), ("rank",)).astype(x.dtype)
        scale = leaf(module, "lambda_b", start_b, (features,), module.axes[1:]).astype(x.dtype)
        x = dropped(module, x, self.dropout) @ a[: x.shape[-1]].astype(x.dtype)
        return (d * x) @ b[:, :features].astype(x.dtype) * scale

    def merged(
        self, kernel: Array, lambda_b: Array, lambda_d: Array, vera_a: Array, vera_b: Array
    ) -> Array:
        """W + (A ∘ λ_d) (B ∘ λ_b)."""
        into, out = kernel.shape[-2:]
        left = vera_a[:into] * lambda_d[..., None, :]
        return kernel + jnp.matmul(left, vera_b[:, :out] * lambda_b[..., None, :])
