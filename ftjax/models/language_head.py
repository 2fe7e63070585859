"""Cross-entropy of a language model without its logits: the projection and the loss in one."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from ftjax.int8_product import FEW
from ftjax.models.layers import Dense
from ftjax.parallel.collectives import scatter_sum
from ftjax.parallel.mesh import RULES, fitting
from ftjax.parallel.narrow import (
    NARROW,
    dot,
    dot_of_columns,
    is_narrow,
    laid_out,
    narrow_matmul,
)
from ftjax.parallel.platform import PLATFORM
from ftjax.parallel.product import halves, matmul
from ftjax.quantization import Quantized

Array = jax.Array
CHUNK = 2**25  # logits that exist at a time on a device, by its part of the kernel
WHOLE = 2**27  # and by all of it, which is read once a chunk
# Tokens at a time that a GPU takes as long to multiply as to read the kernel and its gradient.
TOKENS = {"gpu": 1024}


class Scores(NamedTuple):
    """What is left of the logits of all tokens.

    Attributes:
        loss: Σ weight · cross-entropy, of smoothed targets where they are.
        weight: Σ weight.
        tokens: (batch, length, 2) of each token: weight · cross-entropy, never smoothed, and
            weight where the target is the most probable; no gradient goes through it.
    """

    loss: Array
    weight: Array
    tokens: Array


def capped(logits: Array, softcap: float | None) -> Array:
    """c · tanh(logits / c); None for no cap."""
    return softcap * jnp.tanh(logits / softcap) if softcap else logits


class LanguageHead(Dense):
    """A projection to the vocabulary: logits, or the scores of targets in their stead.

    Attributes:
        softcap, gathered: as of `score`.
    """

    softcap: float | None = None
    gathered: bool = False

    @nn.compact
    def __call__(self, x: Array, *targets: Any) -> Array | Scores:
        """Logits (batch, length, vocabulary), or `score` of targets, weights and smoothing."""
        kernel = self.weight(x.shape[-1])
        if targets:
            return score(x, kernel, *targets, softcap=self.softcap, gathered=self.gathered)
        x = x if isinstance(kernel, Quantized) else match_dtype(x, kernel)
        return capped(matmul(x, kernel, self.axes, jnp.float32), self.softcap)


def read_off(x: Array, table: Array) -> Array:
    """Logits in float32 of hidden states, in the compute dtype, by a table (vocabulary, features).

    The table is read as it lies: transposed, XLA would convert a bfloat16 one as a whole on CPUs.
    """
    if isinstance(table, Quantized):
        return table.product(x)
    x = match_dtype(x, table)
    flat = x.reshape(-1, x.shape[-1])
    if is_narrow(*flat.shape, len(table)):
        y = narrow_matmul(flat, table, transposed=True, dtype=jnp.float32)
        return y.reshape(*x.shape[:-1], -1)
    if (x.dtype, table.dtype) == (jnp.float32, jnp.bfloat16) and len(flat) <= FEW:
        high, low = jnp.split(read_off(halves(flat), table), 2)
        return (high + low).reshape(*x.shape[:-1], -1)
    if len(flat) == 1 and x.dtype == jnp.bfloat16:  # as it would for one row
        return read_off(jnp.concatenate([x, x]), table)[:1]
    y = jnp.einsum("re,ve->rv", flat, table.astype(x.dtype), preferred_element_type=jnp.float32)
    return y.reshape(*x.shape[:-1], -1)


def match_dtype(x: Array, kernel: Array) -> Array:
    """x as it is multiplied by the kernel: both are float32 unless neither is."""
    return x if x.dtype == kernel.dtype else x.astype(jnp.float32)


def with_ones(x: Array) -> Array:
    """x (..., features + 1), for a kernel whose last row is a bias."""
    return jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1), x.dtype)], -1)


def score(
    x: Array,
    kernel: Array,
    targets: Array,
    weights: Array | None = None,
    smoothing: float = 0.0,
    softcap: float | None = None,
    gathered: bool = False,
) -> Scores | Array:
    """Scores of softmax(x W) for targets, and by differentiation the gradients of the loss.

    Without weights, the log-probability of each target (batch, length), which can be
    differentiated one by one: its logits are computed once more for that.

    Of (batch, length, vocabulary) logits only a chunk of positions exists at a time. Gradients
    are computed with the loss, so that no logits are computed twice. Over a mesh every device
    holds its part of the vocabulary and sees the tokens of all in turn: the kernel is never
    gathered, its gradient never reduced. Or it is `gathered`, once, and devices of the axis fsdp
    see their own tokens: less is sent where they have more tokens than there are words.

    Args:
        x: (batch, length, features).
        kernel: (features, vocabulary).
        targets: (batch, length) token ids.
        weights: (batch, length), 0 for what does not count.
        smoothing: ε of Szegedy et al. (2016): targets are (1 − ε) one-hot + ε / vocabulary.
        softcap: c in c · tanh(z / c).
        gathered: whether each device of the axis fsdp has the whole kernel.
    """
    if weights is None:
        return _log_probabilities(x, kernel, targets, softcap)
    narrow = NARROW.value if is_narrow(targets.size, *kernel.shape) else ""
    settings = (smoothing, softcap, narrow, TOKENS.get(PLATFORM.value, 0), gathered)
    loss, tokens = _score(x, kernel, targets, weights.astype(jnp.float32), settings)
    return Scores(loss, weights.sum(dtype=jnp.float32), tokens)


def positions_at_once(rows: int, columns: int, tokens: int, most: int = CHUNK) -> int:
    """How many positions of all rows have their logits at a time.

    Args:
        rows, columns: of logits on a device.
        tokens: no fewer than these.
        most: logits that exist at a time.
    """
    return max(1, most // (rows * columns), -(-tokens // rows))


def logits_of(x: Array, kernel: Array) -> Array:
    """x W in float32, of (batch, length, features)."""
    if is_narrow(x.shape[0] * x.shape[1], *kernel.shape):
        flat = x.reshape(-1, x.shape[-1])
        z = narrow_matmul(flat, laid_out(kernel), dtype=jnp.float32)
        return z.reshape(*x.shape[:2], -1)
    return jnp.einsum("ble,ev->blv", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)


def _log_probabilities(x: Array, kernel: Array, targets: Array, softcap: float | None) -> Array:
    """In chunks of positions, whose logits are not kept."""
    rows, length, _ = x.shape
    tokens = TOKENS.get(PLATFORM.value, 0)
    count = -(-length // positions_at_once(rows, kernel.shape[1], tokens))
    chunk = -(-length // count)

    @jax.checkpoint
    def of_chunk(part: tuple[Array, Array]) -> Array:
        x, targets = part
        z = capped(logits_of(x, kernel), softcap)
        target_logits = jnp.take_along_axis(z, targets[..., None], -1)[..., 0]
        return target_logits - jax.nn.logsumexp(z, -1)

    def split(y: Array) -> Array:
        y = jnp.pad(y, ((0, 0), (0, count * chunk - length), *((0, 0),) * (y.ndim - 2)))
        return y.reshape(rows, count, chunk, *y.shape[2:]).swapaxes(0, 1)

    chunks = jax.lax.map(of_chunk, (split(x), split(targets)))
    return chunks.swapaxes(0, 1).reshape(rows, count * chunk)[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _score(x, kernel, targets, weights, settings):
    return _chunks(x, kernel, targets, weights, settings, False, False)[0]


def _forward(x, kernel, targets, weights, settings):
    scores, *grads = _chunks(
        x.value, kernel.value, targets.value, weights.value, settings, x.perturbed, kernel.perturbed
    )
    dx, dkernel = grads
    if dkernel is not None:  # rounded before anything goes on, since it is kept to the end
        dx, dkernel = jax.lax.optimization_barrier((dx, dkernel.astype(kernel.value.dtype)))
    return scores, (dx, dkernel)


def _backward(settings, grads, cotangent):
    loss, _ = cotangent
    dx, dkernel = (None if g is None else (g * loss).astype(g.dtype) for g in grads)
    return dx, dkernel, None, None


_score.defvjp(_forward, _backward, symbolic_zeros=True)


COLUMNS, GATHERED = PartitionSpec(None, ("fsdp", "tensor")), PartitionSpec(None, "tensor")


def _chunks(x, kernel, targets, weights, settings, of_x: bool, of_kernel: bool):
    """(Σ loss, what it is of each token), and the gradients asked for by x and by the kernel."""
    mesh, size = jax.sharding.get_abstract_mesh(), kernel.shape[1]
    run = partial(_local, size=size, of_x=of_x, of_kernel=of_kernel)
    *settings, gathered = settings
    kernel = laid_out(kernel.astype(jnp.bfloat16)) if settings[2] else kernel.astype(x.dtype)
    if mesh.empty:
        return run(x, kernel, targets, weights, settings=settings, single=True)
    gathered = gathered and kernel.shape[0] % mesh.shape["fsdp"] == 0
    ways = mesh.shape["tensor"] * (1 if gathered else mesh.shape["fsdp"])
    rows = fitting(mesh.shape, (RULES["batch"], RULES["length"]), targets.shape)
    if rows[0] is None:
        raise ValueError(f"{targets.shape[0]} rows do not divide over the mesh {mesh.shape}")
    token_axes = ("data", "expert", *([rows[1]] if rows[1] else []))
    run = partial(run, settings=settings, gathered=gathered, token_axes=token_axes)
    placed = (GATHERED, PartitionSpec("fsdp", "tensor")) if gathered else (COLUMNS, COLUMNS)
    grads = rows if of_x else None, placed[1] if of_kernel else None
    scores, dx, dkernel = jax.shard_map(
        partial(run, single=False),
        in_specs=(rows, placed[0], rows, rows),
        out_specs=((PartitionSpec(), rows), *grads),
        check_vma=False,
    )(x, jnp.pad(kernel, ((0, 0), (0, -size % ways))), targets, weights)
    return scores, dx, dkernel if dkernel is None else dkernel[:, :size]


def _local(
    x,
    kernel,
    targets,
    weights,
    *,
    size,
    settings,
    of_x,
    of_kernel,
    single,
    gathered=False,
    token_axes=(),
):
    """What a device computes: all rows of the fsdp axis, its part of the vocabulary.

    Args:
        x, targets, weights: of this device's rows.
        kernel: (features, columns), this device's; those past `size` in all are padding.
        settings: smoothing, softcap, the platform that products are narrow for, and the
            least number of tokens at a time.
        single: there are no other devices.
        gathered: its own rows, the vocabulary's part of the tensor axis.
        token_axes: mesh axes over which tokens are spread, besides fsdp.
    """

    def collective(function, y, *axes, **options):
        return y if single else function(y, axes, **options)

    columns_over = ("tensor",) if gathered else ("fsdp", "tensor")
    alone = single or gathered  # on the axis fsdp

    def over_columns(function, y):
        return collective(function, y, *columns_over)

    def gather(y):
        return y if alone else jax.lax.all_gather(y, "fsdp", axis=0, tiled=True)

    smoothing, softcap, narrow, least = settings
    part = 0 if single else jax.lax.axis_index(columns_over)
    columns = part * kernel.shape[1] + jnp.arange(kernel.shape[1])
    real = columns < size
    batch, length, _ = x.shape
    rows = batch * (1 if alone else jax.lax.axis_size("fsdp"))
    most = WHOLE if gathered else CHUNK
    count = -(-length // positions_at_once(rows, kernel.shape[1], least, most))
    chunk = -(-length // count)  # nearly no padding

    def body(carry, parts):
        loss, dkernel = carry
        x, targets, weights = map(gather, parts)
        dtype, flat = x.dtype, x.reshape(-1, x.shape[-1]).astype(kernel.dtype)
        z = dot(flat, kernel).reshape(*targets.shape, -1)
        slope = 1.0
        if softcap:
            z = jnp.tanh(z / softcap)
            slope, z = 1 - z**2, softcap * z
        z = jnp.where(real, z, -jnp.inf)
        largest = over_columns(jax.lax.pmax, z.max(-1, keepdims=True))
        shifted = jnp.exp(z - largest)
        is_target = columns == targets[..., None]
        sums = [shifted.sum(-1), jnp.where(is_target, z, 0).sum(-1)]
        if smoothing:
            sums.append(jnp.where(real, z, 0).sum(-1) / size)
        total, target_logits, *mean = over_columns(jax.lax.psum, sums)
        largest = largest[..., 0]
        losses = weights * (largest + jnp.log(total) - target_logits)
        loss += losses.sum()
        if smoothing:
            loss += smoothing * (weights * (target_logits - mean[0])).sum()
            is_target = (1 - smoothing) * is_target + smoothing / size * real
        tokens = jnp.stack([losses, weights * (target_logits >= largest)], -1)
        first = 0 if alone else jax.lax.axis_index("fsdp") * batch
        tokens = jax.lax.dynamic_slice_in_dim(tokens, first, batch)
        dz = (shifted / total[..., None] - is_target) * slope * weights[..., None]
        dz, dx = dz.reshape(len(flat), -1).astype(kernel.dtype), None
        if of_x:
            dx = dot(dz, kernel, transposed=True).reshape(x.shape).astype(dtype)
            dx = collective(jax.lax.psum, dx, "tensor")
            dx = dx if alone else scatter_sum(dx, "fsdp", 0)
        if of_kernel:
            dkernel += dot_of_columns(flat, dz, narrow)
        return (loss, dkernel), (tokens, dx)

    start = (0.0, jnp.zeros(kernel.shape, jnp.float32) if of_kernel else None)
    parts = tuple(_split(y, count, chunk) for y in (x, targets, weights))
    (loss, dkernel), (tokens, dx) = jax.lax.scan(body, start, parts)
    loss = collective(jax.lax.psum, loss, *token_axes, *(("fsdp",) if gathered else ()))
    if gathered and of_kernel:
        dkernel = scatter_sum(dkernel, "fsdp", 0)
    dkernel = collective(jax.lax.psum, dkernel, *token_axes)
    return (loss, _joined(tokens, length)), _joined(dx, length) if of_x else None, dkernel


def _split(y: Array, count: int, chunk: int) -> Array:
    """(batch, length, ...) → (count, batch, chunk, ...), padded with zeros."""
    batch, length = y.shape[:2]
    y = jnp.pad(y, ((0, 0), (0, count * chunk - length), *((0, 0),) * (y.ndim - 2)))
    return y.reshape(batch, count, chunk, *y.shape[2:]).swapaxes(0, 1)


def _joined(y: Array, length: int) -> Array:
    """The inverse of `_split`."""
    count, batch, chunk = y.shape[:3]
    return y.swapaxes(0, 1).reshape(batch, count * chunk, *y.shape[3:])[:, :length]
