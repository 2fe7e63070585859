"""LoRA (Hu et al. 2022): a low-rank update beside chosen projections."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.dropout import dropout
from ftjax.methods.additive import LowRank
from ftjax.methods.base import Interceptor, at, nested
from ftjax.methods.factors import held, pair, product, uniform
from ftjax.options import Share


@dataclass(frozen=True)
class Lora(LowRank):
    """y = x W + b + (α/r) · dropout(x) A B, with W frozen (Hu et al. 2022, eq. 3).

    A has shape (in, r) and B (r, out); r (in + out) parameters a projection. Equal to `peft`'s
    LoraConfig. The head is trained too; BERT's pooler is not, as in `peft`. Variants change the
    scale, the update, or what is merged; names of all their leaves begin with "lora_".

    What `transformers` stores as one projection (GPT-2's c_attn, Phi 3's qkv_proj and
    gate_up_proj) is several here, each with an A of its own: r (in + out) parameters each, where
    `peft` has one A for all and trains otherwise. An exported folder holds them side by side, of
    a rank that is as many times higher, and computes exactly the same.

    The table of words may be a target, too, or those of both sides where an untied BART has two:
    W[x] + (α/r) · A[x] B, A (vocabulary, r) zero and B ~ N(0, 1) at first, without dropout. A head
    that reads words off by the same table reads them off the unadapted one, as in `peft`; such a
    model cannot be merged. A head with weights of its own may be a target by its name, "lm_head",
    without dropout.

    Attributes:
        dropout: on the update's input, in training.
        init: of projections, "kaiming" (A uniform, B zero: the identity), "gaussian" (A ~
            N(0, 1/r), B zero: the identity), or "random" (A and B uniform, also where A is zero
            otherwise: changes the model at step 0).
    """

    dropout: Share = 0.0
    init: Literal["kaiming", "gaussian", "random"] = "kaiming"

    group: ClassVar[str] = "lora"
    leaves: ClassVar[tuple[str, ...]] = ("lora_a", "lora_b")
    embeddings: ClassVar[bool] = True
    non_identity: ClassVar[dict[str, Any]] = {"init": "random"}

    def interceptor(self, base: Base) -> Interceptor:
        return nested(*(method.on(base, modules) for method, modules in self.variants(base)))

    def on(self, base: Base, modules: frozenset[str]) -> Interceptor:
        """Of modules that have this r and α."""
        words, heads = base.tables & modules, base.reading_off().keys() & modules
        return nested(
            at(modules - words - heads, self.adapted),
            at(heads, self.read_off, "weight"),
            at(words, self.prepared, "setup"),
            at(words, self.looked_up),
        )

    def adapted(self, module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
        """What an adapted projection gives."""
        y = call(x)
        return y + self.update(module, x.astype(y.dtype), y.shape[-1])

    def read_off(self, module: nn.Module, call: Callable, size: int) -> jax.Array:
        """What a head multiplies by, which may have use for its weights alone."""
        kernel = call(size)
        return self.merged(kernel, *self.factors(module, *kernel.shape))

    def prepared(self, module: nn.Module, call: Callable) -> None:
        """Gives a table of words its parameters, for which there is time in its setup alone."""
        call()
        init_a = uniform if self.init == "random" else nn.initializers.zeros
        init_b = nn.initializers.normal(1.0)
        pair(module, (module.size, self.rank, module.features), init_a, init_b)

    def looked_up(self, module: nn.Module, call: Callable, ids: jax.Array) -> jax.Array:
        """What an adapted table of words gives."""
        y = call(ids)
        return y + self.update_of(module, ids, y.dtype)

    def update_of(self, module: nn.Module, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """s · A[x] B, in a dtype."""
        rows = jnp.take(held(module, "lora_a"), ids, axis=0).astype(dtype)
        return self.scale * (rows @ held(module, "lora_b").astype(dtype))

    def update(self, module: nn.Module, x: jax.Array, features: int) -> jax.Array:
        """s · dropout(x) A B, in x's dtype."""
        a, b = self.factors(module, x.shape[-1], features)
        return product(module, self.dropped(module, x), a, b) * self.scale

    def factors(self, module: nn.Module, size: int, features: int) -> tuple[jax.Array, jax.Array]:
        """A and B of a projection."""
        init_a = nn.initializers.normal(1 / self.rank) if self.init == "gaussian" else uniform
        init_b = uniform if self.init == "random" else nn.initializers.zeros
        return pair(module, (size, self.rank, features), init_a, init_b)

    def dropped(self, module: nn.Module, x: jax.Array) -> jax.Array:
        """The update's input, after dropout in training."""
        if self.dropout and module.has_rng("dropout"):
            return dropout(module.make_rng("dropout"), x, self.dropout)
        return x

    def merged(self, kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array) -> jax.Array:
        """W + s A B."""
        return kernel + self.scale * (lora_a @ lora_b)
