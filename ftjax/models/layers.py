"""Layers that every family shares, cut where methods attach.

Every projection is a `Dense`, so that a method finds every projection the same way. The attention
core, the norms and the embeddings are submodules, so that prefixes, adapters and soft prompts can
intercept them. Dropout is on exactly when a "dropout" RNG is given: no flag is passed around.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.dropout import dropout
from ftjax.parallel.product import FEW, matmul

Array = jax.Array


def gelu(x: Array) -> Array:
    """x Φ(x) by erf: half the cost of the erfc that `jax.nn.gelu` uses, equal to rounding."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}


@dataclass(frozen=True)
class Options:
    """How a model computes, as opposed to what: none of these changes its outputs.

    Attributes:
        dtype: compute dtype; softmax, norms and heads stay in float32.
        remat: a key of `ftjax.models.stack.POLICIES`.
        segments: lengths of the runs of layers; a run longer than one layer is scanned.
        attention: a key of `ATTENTION`.
        parts: how many parts of its features a feed-forward block is computed in, of decoders
            with gated ones.
    """

    dtype: Any = jnp.float32
    remat: str = "none"
    segments: tuple[int, ...] | None = None
    attention: str = "xla"
    parts: int = 1


class Dense(nn.Module):
    """y = x W + b with kernel W of shape (in, out).

    Attributes:
        features: size of the output.
        axes: logical axes of the kernel (in, out); the bias takes the second.
        stddev: of the normal initialization of the kernel.
    """

    features: int
    axes: tuple[str | None, str | None] = (None, None)
    use_bias: bool = True
    dtype: Any = jnp.float32
    stddev: float = 0.02

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.weight(x.shape[-1])
        y = self.product(x.astype(self.dtype), kernel)
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            bias = self.param("bias", init, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y

    def weight(self, size: int) -> Array:
        """The kernel (in, out) that `__call__` uses; methods intercept it."""
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes)
        return self.param("kernel", init, (size, self.features), jnp.float32)

    def product(self, x: Array, kernel: Array) -> Array:
        """x W; methods intercept it."""
        return matmul(x, kernel, self.axes)


class Kernel(Dense):
    """The kernel (in, out) of a `Dense` without bias, for products with parts of it."""

    @nn.compact
    def __call__(self, size: int) -> Array:
        return self.weight(size)


class LayerNorm(nn.Module):
    """Normalizes the last axis in float32 (Ba et al. 2016, eq. 4); the output keeps x's dtype."""

    epsilon: float = 1e-12
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def param(name: str, init: Callable) -> Array:
            init = nn.with_logical_partitioning(init, (None,))
            return self.param(name, init, x.shape[-1:], jnp.float32).astype(jnp.float32)

        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(variance + self.epsilon)
        normal = normal * param("scale", nn.initializers.ones)
        if self.use_bias:
            normal = normal + param("bias", nn.initializers.zeros)
        return normal.astype(x.dtype)


class RMSNorm(nn.Module):
    """x / √mean(x²) · scale over the last axis, in float32 (Zhang and Sennrich 2019).

    Attributes:
        offset: multiply by 1 + scale, scale starting at zero, as Gemma does.
    """

    epsilon: float = 1e-6
    offset: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        start = nn.initializers.zeros if self.offset else nn.initializers.ones
        init = nn.with_logical_partitioning(start, (None,))
        scale = self.param("scale", init, x.shape[-1:], jnp.float32).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        if self.offset:
            return (normal * (1 + scale)).astype(x.dtype)
        return normal.astype(x.dtype) * scale.astype(x.dtype)


class Embedding(nn.Module):
    """A table of shape (size, features), looked up by integer ids."""

    size: int
    features: int
    axes: tuple[str | None, str | None] = ("vocab", "embed")
    dtype: Any = jnp.float32
    stddev: float = 0.02

    def setup(self) -> None:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes)
        self.embedding = self.param("embedding", init, (self.size, self.features), jnp.float32)

    def __call__(self, ids: Array) -> Array:
        table = self.embedding
        if table.dtype == jnp.bfloat16 and ids.size <= FEW:
            # As if the table were another for each token: XLA on CPUs would make a float32 one
            # before the loop over tokens, each time that the loop is begun.
            table, ids = jax.lax.optimization_barrier((table, ids))
        return jnp.take(table, ids, axis=0).astype(self.dtype)

    def first(self, count: int, start: int = 0) -> Array:
        """`count` rows from `start`: a slice, whose gradient needs no scatter."""
        return self.embedding[start : start + count].astype(self.dtype)


class Bias(nn.Module):
    """A float32 parameter of a shape, added to what no projection gives.

    Attributes:
        stddev: of its normal initialization; 0 for zeros.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stddev: float = 0.0

    @nn.compact
    def __call__(self) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(self.stddev), self.axes)
        return self.param("bias", init, self.shape, jnp.float32)


class Dropout(nn.Module):
    """Active exactly when a "dropout" RNG is given to `apply`."""

    rate: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        return dropout(self.make_rng("dropout"), x, self.rate)


def encoder_mask(
    attention_mask: Array | None, segment_ids: Array | None, perm_mask: Array | None = None
) -> Array | None:
    """Which keys a query sees, (batch, 1, q or 1, k), from either kind of mask.

    Args:
        attention_mask: (batch, length), nonzero at real tokens.
        segment_ids: (batch, length), the number of the packed example each token belongs to,
            zero at padding; tokens see their own example only. Takes precedence.
        perm_mask: (batch, q, k), nonzero where a query must not see a key besides.
    """
    mask = None
    if segment_ids is not None:
        same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        mask = same & (segment_ids[:, None, None, :] > 0)
    elif attention_mask is not None:
        mask = (attention_mask > 0)[:, None, None, :]
    if perm_mask is not None:
        seen = (perm_mask == 0)[:, None]
        mask = seen if mask is None else mask & seen
    return mask


def shift_right(ids: Array, start: int | Array) -> Array:
    """What a decoder reads to predict `ids`: `start`, then all but the last."""
    return jnp.concatenate([jnp.broadcast_to(start, ids[:, :1].shape), ids[:, :-1]], 1)


def at_starts(x: Array, starts: Array | None) -> Array:
    """What stands where examples start: (batch, examples, ...) of x (batch, length, ...).

    Args:
        x: anything with a row a position.
        starts: (batch, examples), the position of each packed example's first token; None where
            a row is one example.
    """
    if starts is None:
        return x[:, :1]
    return jnp.take_along_axis(x, starts.reshape(*starts.shape, *(1,) * (x.ndim - 2)), axis=1)


def entity_pool(
    hidden: Array, entities: Array, segment_ids: Array | None, starts: Array | None
) -> Array:
    """Of each example the means over its first and its second entity, and its first token.

    After R-BERT (Wu and He 2019), without its layers between; 0 for an entity that is cut off.

    Args:
        hidden: (batch, length, features).
        entities: (batch, length), 1 and 2 at tokens of the two.
        segment_ids, starts: of packed rows, as of `mean_pool`.

    Returns:
        (batch, 1 or examples, 3 features).
    """
    first = at_starts(hidden, starts)
    own = jnp.ones((1, 1, 1), bool)
    if starts is not None:
        own = segment_ids[:, None, :] == 1 + jnp.arange(starts.shape[1])[:, None]

    def mean(number: int) -> Array:
        weight = (own & (entities[:, None, :] == number)).astype(hidden.dtype)
        return (weight @ hidden) / jnp.maximum(weight.sum(-1, keepdims=True), 1)

    return jnp.concatenate([mean(1), mean(2), first], -1)


def mean_pool(
    hidden: Array, attention_mask: Array | None, segment_ids: Array | None, starts: Array | None
) -> Array:
    """The mean over each example's real tokens, as sentence-transformers takes it.

    Args:
        hidden: (batch, length, features).
        attention_mask: (batch, length), where a row is one example.
        segment_ids: (batch, length), for packed examples numbered from 1 in each row.
        starts: (batch, examples), for packed examples.

    Returns:
        (batch, 1 or examples, features).
    """
    if starts is not None:
        number = 1 + jnp.arange(starts.shape[1])
        weight = (segment_ids[:, None, :] == number[:, None]).astype(hidden.dtype)
    elif attention_mask is not None:
        weight = (attention_mask > 0).astype(hidden.dtype)[:, None, :]
    else:
        return hidden.mean(1, keepdims=True)
    return (weight @ hidden) / jnp.maximum(weight.sum(-1, keepdims=True), 1)
