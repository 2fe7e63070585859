"""Averages of the parameters over a run, which are evaluated in their stead."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from ftjax.paths import Flat

Average = Callable[[Flat, Flat, jax.Array], Flat]  # (average, params, updates done) → average


def moving(decay: float) -> Average:
    """An exponential moving average, in which what was before training has no part.

    decay · average + (1 − decay) · params, corrected for its start as Adam's moments are (Kingma
    and Ba 2015, sec. 3): parameters of i updates ago weigh decay^i, divided by all weights.
    """

    def averaged(average: Flat, params: Flat, done: jax.Array) -> Flat:
        share = (1.0 - decay) / (1.0 - decay ** done.astype(jnp.float32))
        return optax.incremental_update(params, average, share)

    return averaged


def equal(first: int, every: int) -> Average:
    """The mean of the parameters after `first` updates and every `every` updates from there on.

    Stochastic weight averaging (Izmailov et al. 2018, alg. 1). Until then the parameters.
    """

    def averaged(average: Flat, params: Flat, done: jax.Array) -> Flat:
        before, since = (done - first) // every, (done - first) % every  # in the mean; updates

        def one(mean: jax.Array, leaf: jax.Array) -> jax.Array:
            new = mean + (leaf - mean) / (before + 1).astype(jnp.float32)
            updated = jnp.where(since == 0, new.astype(mean.dtype), mean)
            return jnp.where(done <= first, leaf, updated)

        return jax.tree.map(one, average, params)

    return averaged
