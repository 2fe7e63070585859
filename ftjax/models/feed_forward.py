"""A decoder's feed-forward block, whole or in parts."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.models.layers import ACTIVATIONS, Dense, Dropout, Kernel
from ftjax.parallel.product import gated, in_turn, matmul

Array = jax.Array


class FeedForward(nn.Module):
    """down(act(gate(x)) · up(x)), or down(act(up(x))).

    Attributes:
        config: of a decoder.
    """

    config: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, act = self.config, ACTIVATIONS[self.config.hidden_act]

        def dense(name: str, cls: type[Dense] = Dense) -> Dense:
            if name == "down":
                return c.dense(c.hidden_size, ("mlp", "embed"), name, "ffn", cls)
            return c.dense(c.intermediate_size, ("embed", "mlp"), name, "ffn", cls)

        mesh = jax.sharding.get_abstract_mesh()
        # Over the axis tensor sums would be sent round once a part.
        apart = c.options.parts > 1 and not self.is_initializing()
        if apart and (mesh.empty or mesh.shape["tensor"] == 1):
            sizes = x.shape[-1], x.shape[-1], c.intermediate_size
            up, gate, down = (
                dense(name, Kernel)(size)
                for name, size in zip(("up", "gate", "down"), sizes, strict=True)
            )
            x = in_parts(x.astype(c.options.dtype), up, gate, down, act, c.options.parts)
        else:
            wide = dense("up")(x)
            if c.gated:
                x, wide = in_turn(x, wide)
                wide = gated(act, dense("gate")(x), wide)
            else:
                wide = act(wide)
            x = dense("down")(wide)
        return Dropout(c.residual_dropout, name="dropout")(x)


def in_parts(
    x: Array, up: Array, gate: Array, down: Array, act: Callable[[Array], Array], parts: int
) -> Array:
    """down(act(gate(x)) · up(x)) as a sum over parts of the wide features.

    Of what is wide, and of the kernels gathered, only one part exists at a time, in the backward
    pass too, where it is computed anew. (Of layers computed anew it is not computed twice: the
    sum is not among what their gradients need.)
    """

    @jax.checkpoint
    def part(x: Array, up: Array, gate: Array, down: Array) -> Array:
        wide = matmul(x, up, ("embed", "mlp"))
        x, wide = in_turn(x, wide)
        return matmul(gated(act, matmul(x, gate, ("embed", "mlp")), wide), down, ("mlp", "embed"))

    edges, out = [i * up.shape[1] // parts for i in range(parts + 1)], jnp.zeros_like(x)
    for a, b in pairwise(edges):
        x, out = in_turn(x, out)
        out = out + part(x, up[:, a:b], gate[:, a:b], down[a:b])
    return out
