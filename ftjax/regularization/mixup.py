"""Mixup of examples at their embedded words (Zhang et al. 2018; Guo et al. 2019, wordMixup)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.loss import Loss
from ftjax.regularization.words import Array, Batch

flip = partial(jnp.flip, axis=0)


def shares(key: Array, batch: Batch, alpha: float) -> Array:
    """λ ~ Beta(α, α) of each example: (rows,); 1 where it or its partner is none."""
    weight = batch["weights"]
    drawn = jax.random.beta(key, alpha, alpha, weight.shape)
    return jnp.where((weight > 0) & (flip(weight) > 0), drawn, 1)


def mixup(
    score: Callable[[Callable[[Batch], Any], Batch], Loss],
    apply: Callable[[Batch, Callable[[Array], Array]], Any],
    batch: Batch,
    share: Array,
) -> Loss:
    """λ ℓ(f(x̃), y) + (1 − λ) ℓ(f(x̃), y′) of x̃ = λ x + (1 − λ) x′, the words padded with zeros.

    The first row's partner is the last, and so on: rows come shuffled, and on a mesh partners are
    exchanged where any other permutation would be gathered. The shorter text is padded with zeros,
    positions and token types are the row's own, and all is seen that either sees.

    Args:
        score: the task's loss, of what the model says of a batch.
        apply: the model, of a batch and of what is made of embedded words.
        batch: rows of one example.
        share: λ.
    """
    mask = batch["attention_mask"]

    def mixed(x: Array) -> Array:
        x, own = jnp.where(mask[..., None] > 0, x, 0), share[:, None, None]
        return own * x + (1 - own) * flip(x)

    seen = jnp.where(share[:, None] < 1, jnp.maximum(mask, flip(mask)), mask)
    outputs = apply({**batch, "attention_mask": seen}, mixed)
    other = jax.tree.map(flip, dict(batch))
    losses = [
        score(lambda _: outputs, {**answers, "weights": part * answers["weights"]})
        for answers, part in ((batch, share), (other, 1 - share))
    ]
    return jax.tree.map(jnp.add, *losses)
