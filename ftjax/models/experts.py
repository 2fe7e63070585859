"""A mixture of experts in place of a decoder's feed-forward block."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.models.layers import ACTIVATIONS, Dense, Dropout

Array = jax.Array


class Experts(nn.Module):
    """A mixture of gated feed-forward blocks, of which each token takes the best few.

    Shazeer et al. (2017); weights are softmax over all experts, normalized over the chosen, as
    Mixtral's. No token is dropped: tokens are sorted by expert and multiplied in ragged groups.

    Attributes:
        config: of a decoder, with experts.
    """

    config: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, act = self.config, ACTIVATIONS[self.config.hidden_act]
        rows = x.reshape(-1, x.shape[-1])
        router = Dense(c.experts, ("embed", None), False, stddev=c.initializer_range, name="router")
        weights, chosen = jax.lax.top_k(jax.nn.softmax(router(rows.astype(jnp.float32))), c.active)
        weights = weights / weights.sum(-1, keepdims=True)
        order = jnp.argsort(chosen.reshape(-1), stable=True)
        sizes = jnp.bincount(chosen.reshape(-1), length=c.experts)

        def project(x: Array, features: int, axes: tuple[str, str], name: str) -> Array:
            make = ExpertDense(
                c.experts, features, axes, c.options.dtype, c.initializer_range, name=name
            )
            return make(x, sizes)

        sorted_rows = rows[order // c.active]
        wide = project(sorted_rows, c.intermediate_size, ("embed", "mlp"), "up")
        gate = project(sorted_rows, c.intermediate_size, ("embed", "mlp"), "gate")
        out = project(act(gate) * wide, c.hidden_size, ("mlp", "embed"), "down")
        out = jnp.zeros_like(out).at[order].set(out).reshape(-1, c.active, x.shape[-1])
        out = (out * weights[..., None].astype(out.dtype)).sum(1).reshape(x.shape)
        return Dropout(c.residual_dropout, name="dropout")(out)


class ExpertDense(nn.Module):
    """A projection of each expert, kernel (experts, in, out), of rows sorted by expert."""

    experts: int
    features: int
    axes: tuple[str, str]
    dtype: Any
    stddev: float

    @nn.compact
    def __call__(self, x: Array, sizes: Array) -> Array:
        kernel = self.weight(x.shape[-1])
        return self.product(x.astype(self.dtype), kernel, sizes)

    def product(self, x: Array, kernel: Array, sizes: Array) -> Array:
        """x W, each row by its expert; methods intercept it."""
        return jax.lax.ragged_dot(x, kernel.astype(x.dtype), sizes)

    def weight(self, size: int) -> Array:
        """The kernel (experts, in, out) that `__call__` uses; methods intercept it."""
        init = nn.with_logical_partitioning(
            nn.initializers.normal(self.stddev), ("experts", *self.axes)
        )
        return self.param("kernel", init, (self.experts, size, self.features), jnp.float32)
