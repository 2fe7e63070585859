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
from jax.ad_checkpoint import checkpoint_name

from ftjax.dropout import dropout
from ftjax.int8_product import FEW
from ftjax.leaf import leaf
from ftjax.models.splash import BLOCKS, Blocks
from ftjax.parallel.product import matmul
from ftjax.quantization import Quantized

Array = jax.Array
STATISTIC = "statistic"  # of a norm, a number a token, for `jax.checkpoint`


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
        remat: a key of `ftjax.models.stack.POLICIES`, or one for each layer.
        segments: lengths of the runs of layers; a run longer than one layer is scanned.
        attention: a key of `ATTENTION`.
        blocks: of the attention kernel for TPUs.
        parts: how many parts of its features a feed-forward block is computed in, of decoders
            with gated ones.
        narrow: the platform that products are computed in bfloat16 for, see
            `ftjax.parallel.narrow`; empty: in the operands' dtype.
        platform: that the model runs on.
        float8: whether projections are products of 8-bit floats, see `ftjax.parallel.float8`.
        gather_head: over a mesh, every device scores its own tokens by the vocabulary's whole
            kernel; else the tokens of all by its part of the kernel.
        whole: names of projections that every device of the axis fsdp holds whole.
        sparse_cores: whether collectives run on chips' sparse cores, beside computation.
    """

    dtype: Any = jnp.float32
    remat: str | tuple[str, ...] = "none"
    segments: tuple[int, ...] | None = None
    attention: str = "xla"
    blocks: Blocks = BLOCKS
    parts: int = 1
    narrow: str = ""
    float8: bool = False
    platform: str = ""
    gather_head: bool = False
    whole: tuple[str, ...] = ()
    sparse_cores: bool = False


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
            bias = leaf(self, "bias", nn.initializers.zeros, (self.features,), self.axes[1:])
            y = y + bias.astype(self.dtype)
        return y

    def weight(self, size: int) -> Array:
        """The kernel (in, out) that `__call__` uses; methods intercept it."""
        init = nn.initializers.normal(self.stddev)
        return leaf(self, "kernel", init, (size, self.features), self.axes)

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
            return leaf(self, name, init, x.shape[-1:], (None,)).astype(jnp.float32)

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
        init = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale = leaf(self, "scale", init, x.shape[-1:], (None,)).astype(jnp.float32)
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        normal = wide * checkpoint_name(inverse, STATISTIC)
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
        init = nn.initializers.normal(self.stddev)
        self.embedding = leaf(self, "embedding", init, (self.size, self.features), self.axes)

    def __call__(self, ids: Array) -> Array:
        table = self.embedding
        if isinstance(table, Quantized):
            return table.rows(ids).astype(self.dtype)
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
        return leaf(self, "bias", nn.initializers.normal(self.stddev), self.shape, self.axes)


class Dropout(nn.Module):
    """Active exactly when a "dropout" RNG is given to `apply`."""

    rate: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.rate == 0.0 or not self.has_rng("dropout"):
            return x
        return dropout(self.make_rng("dropout"), x, self.rate)


def shift_right(ids: Array, start: int | Array) -> Array:
    """What a decoder reads to predict `ids`: `start`, then all but the last."""
    return jnp.concatenate([jnp.broadcast_to(start, ids[:, :1].shape), ids[:, :-1]], 1)
