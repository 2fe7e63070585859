"""Attention as one function with interchangeable back ends."""

from collections.abc import Callable
from functools import cache
from logging import INFO, WARNING, getLogger
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.models import cudnn, splash, triton
from ftjax.models.layers import Dropout
from ftjax.models.masks import Pattern
from ftjax.parallel.narrow import is_narrow, narrow_matmul

Array = jax.Array
LOGGER = getLogger(__name__)


class Inputs(NamedTuple):
    """What a back end computes from; shapes are those of `AttentionCore`.

    Attributes:
        pattern: the mask as kernels take it.
        drop: dropout of the weights.
    """

    query: Array
    key: Array
    value: Array
    mask: Array | None
    bias: Array | None
    scale: float
    pattern: Pattern | None
    softcap: float | None
    drop: Callable[[Array], Array]
    blocks: splash.Blocks


def _xla_attention(inputs: Inputs) -> Array:
    query, key, value = inputs.query, inputs.key, inputs.value
    batch, length, heads, size = query.shape
    groups = key.shape[2]  # whose query heads share a head of keys and values
    if _length_is_spread():  # positions stay a dimension of their own
        query = (query * inputs.scale).reshape(batch, length, groups, -1, size)
        scores = jnp.einsum("blgrd,bkgd->bgrlk", query, key).reshape(batch, heads, length, -1)
        weights = _weights(scores, inputs)
        weights = weights.reshape(batch, groups, -1, length, value.shape[1])
        return jnp.einsum("bgrlk,bkgd->blgrd", weights, value).reshape(batch, length, heads, -1)
    # Matrices of (queries, d), (d, keys) and (keys, d): for one query they are read as they lie.
    query = (query * inputs.scale).reshape(batch, length, groups, -1, size).transpose(0, 2, 3, 1, 4)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    query = query.reshape(batch, groups, -1, size)
    scores = _product(query, key, transposed=True)
    scores = scores.reshape(batch, heads, length, -1)
    weights = _weights(scores, inputs)
    context = _product(weights.reshape(batch, groups, -1, value.shape[2]), value)
    context = context.reshape(batch, heads, length, -1)
    return context.swapaxes(1, 2)


def _product(x: Array, y: Array, transposed: bool = False) -> Array:
    """x y, or x yᵀ, of matrices in the last two dimensions."""
    if is_narrow(*x.shape[-2:], y.shape[-2 if transposed else -1]):
        return narrow_matmul(x, y, transposed)
    return x @ (y.swapaxes(-2, -1) if transposed else y)


def _weights(scores: Array, inputs: Inputs) -> Array:
    scores, softcap = scores.astype(jnp.float32), inputs.softcap
    if inputs.bias is not None:
        scores = scores + inputs.bias
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    if inputs.mask is not None:
        scores = jnp.where(inputs.mask, scores, jnp.finfo(jnp.float32).min)
    return inputs.drop(jax.nn.softmax(scores, axis=-1).astype(inputs.value.dtype))


def _length_is_spread() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.shape["sequence"] > 1


def _cudnn_refusal(inputs: Inputs) -> str | None:
    """Why cuDNN cannot compute it; None where it can. Of dropout nothing: see `AttentionCore`."""
    if inputs.softcap:
        return "it has no soft-capping"
    return cudnn.refusal(*inputs[:7])


def _cudnn_attention(inputs: Inputs) -> Array:
    reason = _cudnn_refusal(inputs)
    if reason:
        raise UserError(f"model.attention=cudnn: {reason}; use attention=gpu or xla")
    return cudnn.attend(*inputs[:7])


def _triton_refusal(inputs: Inputs) -> str | None:
    return triton.refusal(inputs.query, inputs.key, inputs.softcap, inputs.bias, inputs.pattern)


def _triton_attention(inputs: Inputs) -> Array:
    reason = _triton_refusal(inputs)
    if reason:
        raise UserError(f"model.attention=triton: {reason}; use attention=gpu or xla")
    return triton.attend(*inputs[:3], inputs.scale, inputs.pattern)


def _gpu_attention(inputs: Inputs) -> Array:
    """Of packed rows Triton's, of others cuDNN's where it is there and takes what is asked.

    Else XLA's; what was chosen and why is said.
    """
    if inputs.pattern.packed:
        reason = _triton_refusal(inputs)
        if reason is None:
            _tell_once("attention of packed rows by Triton: cuDNN would take a mask of each row")
            return _triton_attention(inputs)
        _tell_once(f"attention of packed rows with a mask, not by Triton: {reason}", WARNING)
    reason = _cudnn_refusal(inputs)
    if reason:
        _say_once(reason)
        return _xla_attention(inputs)
    return cudnn.attend(*inputs[:7])


def _splash_attention(inputs: Inputs) -> Array:
    return splash.attend(*inputs[:3], inputs.pattern, inputs.scale, inputs.softcap, inputs.blocks)


@cache
def _say_once(reason: str) -> None:
    LOGGER.warning("attention without cuDNN, by XLA: %s", reason)


@cache
def _tell_once(choice: str, level: int = INFO) -> None:
    LOGGER.log(level, choice)


ATTENTION = {
    "xla": _xla_attention,
    "cudnn": _cudnn_attention,
    "triton": _triton_attention,
    "gpu": _gpu_attention,
    "splash": _splash_attention,
}
PLATFORMS = {"cudnn": "gpu", "triton": "gpu", "gpu": "gpu", "splash": "tpu"}  # that need one


def runs_on(backend: str, platform: str) -> bool:
    """Whether a back end, or "auto", computes on "cpu", "gpu" or "tpu"."""
    return PLATFORMS.get(backend, platform) == platform


class AttentionCore(nn.Module):
    """softmax(scale · q kᵀ + bias, masked) v, without parameters: prefixes join keys and values.

    Takes query (batch, q, heads, d), key and value (batch, k, heads or a divisor of it, d), and
    a boolean mask and a bias that broadcast to (batch, heads, q, k); returns the context (batch,
    q, heads, d).

    Attributes:
        dropout: on the weights.
        backend: a key of `ATTENTION`.
        scale: None for 1 / √d.
        softcap: c in c · tanh(scores / c), before the mask; None for none.
        blocks: of scores, where the kernel for TPUs computes them.

    `pattern` is the mask as kernels take it. Without it, or for one query, `backend` is not used:
    a row of scores is no more than the keys, and XLA's products read those once.
    """

    dropout: float = 0.0
    backend: str = "xla"
    scale: float | None = None
    softcap: float | None = None
    blocks: splash.Blocks = splash.BLOCKS

    @nn.compact
    def __call__(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | None,
        bias: Array | None = None,
        pattern: Pattern | None = None,
    ) -> Array:
        drop = Dropout(self.dropout, name="dropout")
        pattern = None if self.is_initializing() else pattern
        backend = "xla" if pattern is None or query.shape[1] == 1 else self.backend
        if backend != "xla" and self.dropout and self.has_rng("dropout"):
            if backend != "gpu":
                raise UserError(
                    f"model.attention={backend} has no attention dropout here; use attention=xla"
                )
            _say_once(f"cuDNN has no attention dropout here, and the model has {self.dropout}")
            backend = "xla"
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        inputs = Inputs(
            query, key, value, mask, bias, scale, pattern, self.softcap, drop, self.blocks
        )
        return ATTENTION[backend](inputs)
