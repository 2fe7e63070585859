"""A mixture of experts in place of a decoder's feed-forward block."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ftjax.leaf import leaf
from ftjax.models.grouped_matmul import grouped_matmul
from ftjax.models.layers import ACTIVATIONS, Dense, Dropout
from ftjax.parallel.collectives import gather
from ftjax.parallel.mesh import RULES, fitting
from ftjax.parallel.ragged import send_rows

Array = jax.Array
IN, OUT = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")  # axes of the kernels


class Experts(nn.Module):
    """A mixture of gated feed-forward blocks, of which each token takes the best few.

    Shazeer et al. (2017); weights are softmax over all experts, normalized over the chosen, as
    Mixtral's. No token is dropped: tokens are sorted by expert and multiplied in ragged groups.
    Over a mesh every device does so with its own tokens; over the axis expert, with the tokens that
    chose its own experts, which are sent to it and back.

    Attributes:
        config: of a decoder, with experts.
    """

    config: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, act = self.config, ACTIVATIONS[self.config.hidden_act]
        router = Dense(c.experts, ("embed", None), False, stddev=c.initializer_range, name="router")
        weights, expert_ids = jax.lax.top_k(jax.nn.softmax(router(x.astype(jnp.float32))), c.active)
        weights = weights / weights.sum(-1, keepdims=True)
        dense = partial(ExpertDense, c.experts, dtype=c.options.dtype, stddev=c.initializer_range)
        up, gate = (dense(c.intermediate_size, IN, name=name) for name in ("up", "gate"))
        down = dense(c.hidden_size, OUT, name="down")
        x = x.astype(c.options.dtype)
        mesh, spec = jax.sharding.get_abstract_mesh(), (RULES["batch"], RULES["length"], None)
        rows = PartitionSpec(None) if mesh.empty else fitting(mesh.shape, spec, x.shape)
        if rows[0] is None or mesh.size == 1:
            feed = partial(_feed, act=act, up=up, gate=gate, down=down)
            out = _mix(x, weights, expert_ids, feed, c.experts)
        else:
            wide, narrow = (PartitionSpec(*(RULES[axis] for axis in axes)) for axes in (IN, OUT))
            size = x.shape[-1]
            kernels = up.weight(size), gate.weight(size), down.weight(c.intermediate_size)
            token_axes = ("data", "sequence") if rows[1] else ("data",)
            run = jax.shard_map(
                partial(_local, act=act, token_axes=token_axes),
                in_specs=(rows, rows, rows, wide, wide, narrow),
                out_specs=rows,
            )
            run = jax.checkpoint(run, prevent_cse=False)
            out = run(x, weights, expert_ids, *(kernel.astype(x.dtype) for kernel in kernels))
        return Dropout(c.dropout, name="dropout")(out)


Product = Callable[[Array, Array], Array]  # (rows sorted by expert, rows of each) → products


def _feed(
    rows: Array,
    sizes: Array,
    act: Callable[[Array], Array],
    up: Product,
    gate: Product,
    down: Product,
) -> Array:
    """What experts give of rows sorted by expert; zero past the last that has one."""
    out = down(act(gate(rows, sizes)) * up(rows, sizes), sizes)
    return jnp.where((jnp.arange(len(rows)) < sizes.sum())[:, None], out, 0)


def _mix(x: Array, weights: Array, expert_ids: Array, feed: Product, experts: int) -> Array:
    """Σ weight · expert(token) over a token's experts: (batch, length, d) in and out.

    Args:
        weights, expert_ids: (batch, length, active).
        feed: what experts give of rows.
        experts: how many there are.
    """
    active = expert_ids.shape[-1]
    ids = expert_ids.reshape(-1)
    order = jnp.argsort(ids, stable=True)
    out = feed(x.reshape(-1, x.shape[-1])[order // active], jnp.bincount(ids, length=experts))
    out = jnp.zeros_like(out).at[order].set(out).reshape(*expert_ids.shape, -1)
    return (out * weights[..., None].astype(out.dtype)).sum(-2)


def _local(
    x: Array,
    weights: Array,
    expert_ids: Array,
    *kernels: Array,
    act: Callable[[Array], Array],
    token_axes: tuple[str, ...],
) -> Array:
    """What one device computes of it, for its tokens of all experts."""
    kernels = tuple(jax.lax.pcast(kernel, token_axes, to="varying") for kernel in kernels)
    up, gate, down = (
        partial(_product, gather(kernel, "fsdp", dimension))
        for kernel, dimension in zip(kernels, (1, 1, 2), strict=True)
    )
    x, expert_ids = (jax.lax.pcast(y, "tensor", to="varying") for y in (x, expert_ids))
    feed, devices = (
        partial(_feed, act=act, up=up, gate=gate, down=down),
        jax.lax.axis_size("expert"),
    )
    experts = devices * len(kernels[0])
    if devices > 1:
        tokens, choices = x.size // x.shape[-1], min(expert_ids.shape[-1], len(kernels[0]))
        feed = partial(_at_owners, feed=feed, room=devices * tokens * choices)
    return jax.lax.psum(_mix(x, weights, expert_ids, feed, experts), "tensor")


def _at_owners(rows: Array, sizes: Array, feed: Product, room: int) -> Array:
    """What experts give of rows sorted by expert, each row where its expert is.

    No row is dropped, whatever experts are chosen: there is room for all.

    Args:
        rows: (rows, d) of this device.
        sizes: (experts,) rows of each.
        feed: what this device's experts give of rows.
        room: rows that can come to a device.
    """
    devices, me = jax.lax.axis_size("expert"), jax.lax.axis_index("expert")
    counts = jax.lax.all_gather(sizes, "expert").reshape(devices, devices, -1)
    sent, own = counts.sum(-1), counts[:, me]  # by sender and owner; by sender and own expert
    came = send_rows(rows, sent, room, "expert")
    if own.shape[1] == 1:
        out = feed(came, own.sum(0))
    else:
        ends = jnp.cumsum(own.reshape(-1))
        piece = jnp.searchsorted(ends, jnp.arange(room), side="right", method="compare_all")
        ids = jnp.where(piece < own.size, piece % own.shape[1], own.shape[1])
        order = jnp.argsort(ids, stable=True)
        out = feed(came[order], own.sum(0))
        out = jnp.zeros_like(out).at[order].set(out)
    return send_rows(out, sent.T, len(rows), "expert")


def _product(kernel: Array, x: Array, sizes: Array) -> Array:
    return grouped_matmul(x, kernel, sizes)


class ExpertDense(nn.Module):
    """A projection of each expert, kernel (experts, in, out), of rows sorted by expert."""

    experts: int
    features: int
    axes: tuple[str, ...]
    dtype: Any
    stddev: float

    def __call__(self, x: Array, sizes: Array) -> Array:
        return self.product(x.astype(self.dtype), self.weight(x.shape[-1]), sizes)

    def product(self, x: Array, kernel: Array, sizes: Array) -> Array:
        """x W, each row by its expert; methods intercept it."""
        return grouped_matmul(x, kernel, sizes)

    @nn.compact
    def weight(self, size: int) -> Array:
        """The kernel (experts, in, out) that `__call__` uses; methods intercept it."""
        init, shape = nn.initializers.normal(self.stddev), (self.experts, size, self.features)
        return leaf(self, "kernel", init, shape, self.axes)
