"""The feed-forward block of a layer, whole or in parts."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.models.config import Config
from ftjax.models.layers import ACTIVATIONS, Dropout, Kernel
from ftjax.models.stack import keeps_wide
from ftjax.parallel.product import gated, in_turn, matmul

Array = jax.Array


class FeedForward(nn.Module):
    """down(act(gate(x)) · up(x)), or down(act(up(x))), before the residual.

    Attributes:
        config: of the family.
        width: features between the projections.
        inner: name of the dropout there, on which depends what it draws.
        outer: whether what comes out is dropped, too.
    """

    config: Config
    width: int
    inner: str = "inner_dropout"
    outer: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, act = self.config, ACTIVATIONS[self.config.hidden_act]
        wide = partial(c.dense, self.width, ("embed", "mlp"))
        narrow = partial(c.dense, c.hidden_size, ("mlp", "embed"))
        mesh = jax.sharding.get_abstract_mesh()
        # Over the axis tensor sums would be sent round once a part.
        kept = keeps_wide(c.options.remat)
        is_divided = c.options.parts > 1 and not self.is_initializing()
        if is_divided and (mesh.empty or mesh.shape["tensor"] == 1):
            up, gate = (wide(name, Kernel)(x.shape[-1]) for name in ("up", "gate"))
            down = narrow("down", Kernel)(self.width)
            x = in_parts(x.astype(c.options.dtype), up, gate, down, act, c.options.parts, kept)
        else:
            y = wide("up")(x)
            if c.gated:
                x, y = in_turn(x, y)
                y = gated(act, wide("gate")(x), y, kept)
            else:
                y = act(y)
            y = Dropout(c.activation_dropout, name=self.inner)(y)
            x = narrow("down")(y)
        return Dropout(c.dropout, name="dropout")(x) if self.outer else x


def in_parts(
    x: Array,
    up: Array,
    gate: Array,
    down: Array,
    act: Callable[[Array], Array],
    parts: int,
    kept: bool,
) -> Array:
    """down(act(gate(x)) · up(x)) as a sum over parts of the wide features.

    Of what is wide, and of the kernels gathered, only one part exists at a time, in the backward
    pass too, where it is computed anew unless the features are `kept`. (Of layers computed anew it
    is not computed twice: the sum is not among what their gradients need.)
    """

    def part(x: Array, up: Array, gate: Array, down: Array) -> Array:
        wide = matmul(x, up, ("embed", "mlp"))
        x, wide = in_turn(x, wide)
        wide = gated(act, matmul(x, gate, ("embed", "mlp")), wide, kept)
        return matmul(wide, down, ("mlp", "embed"))

    part = part if kept else jax.checkpoint(part)
    edges, out = [i * up.shape[1] // parts for i in range(parts + 1)], jnp.zeros_like(x)
    for a, b in pairwise(edges):
        x, out = in_turn(x, out)
        out = out + part(x, up[:, a:b], gate[:, a:b], down[a:b])
    return out
