"""LoRA (Hu et al. 2022): a low-rank update beside chosen projections."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.leaf import existing_leaf
from ftjax.methods.initializers import STANDARD_NORMAL, ZEROS, uniform_in_rows
from ftjax.methods.interception import Interceptor, at, dropped, nested
from ftjax.methods.low_rank import LowRank, pair, product
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

    def on(self, base: Base, modules: frozenset[str]) -> Interceptor:
        words, heads = base.tables & modules, base.reading_off().keys() & modules
        return nested(
            self.on_projections(modules - words - heads),
            at(heads, self.read_off, "weight"),
            at(words, self.prepared, "setup"),
            at(words, self.looked_up),
        )

    def on_projections(self, modules: frozenset[str]) -> Interceptor:
        """See `on`."""
        return at(modules, self.adapted)

    def update(self, module: nn.Module, x: jax.Array, features: int) -> jax.Array:
        """s · dropout(x) A B."""
        a, b = self.factors(module, x.shape[-1], features)
        return product(module, dropped(module, x, self.dropout), a, b) * self.scale

    def factors(self, module: nn.Module, size: int, features: int) -> tuple[jax.Array, jax.Array]:
        """A and B of a projection."""
        gaussian = nn.initializers.normal(1 / self.rank)
        init_a = gaussian if self.init == "gaussian" else uniform_in_rows
        init_b = uniform_in_rows if self.init == "random" else ZEROS
        return pair(module, (size, self.rank, features), init_a, init_b)

    def read_off(self, module: nn.Module, call: Callable, size: int) -> jax.Array:
        """What a head multiplies by, which may have use for its weights alone."""
        kernel = call(size)
        return self.merged(kernel, *self.factors(module, *kernel.shape))

    def prepared(self, module: nn.Module, call: Callable) -> None:
        """Gives a table of words its parameters, for which there is time in its setup alone."""
        call()
        init_a = uniform_in_rows if self.init == "random" else ZEROS
        pair(module, (module.size, self.rank, module.features), init_a, STANDARD_NORMAL)

    def looked_up(self, module: nn.Module, call: Callable, ids: jax.Array) -> jax.Array:
        """What an adapted table of words gives."""
        y = call(ids)
        return y + self.update_of_words(module, ids, y.dtype)

    def update_of_words(self, module: nn.Module, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
        """s · A[x] B, in a dtype."""
        rows = jnp.take(existing_leaf(module, "lora_a"), ids, axis=0).astype(dtype)
        return self.scale * (rows @ existing_leaf(module, "lora_b").astype(dtype))

    def merged(self, kernel: jax.Array, lora_a: jax.Array, lora_b: jax.Array) -> jax.Array:
        """W + s A B."""
        return kernel + self.scale * (lora_a @ lora_b)
