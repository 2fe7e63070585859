"""Adversarial training: gradients where the embeddings of words are moved so that the loss rises.

A perturbation δ is of all word embeddings of an example, in the units of their table, and norms
are of an example: neither the rest of the batch nor how it is divided matters. All passes of a
step have the same dropout (Zhu et al. 2020, sec. 3.3).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.loss import Loss
from ftjax.paths import Flat
from ftjax.regularization.words import Array, Batch, key_of, members, noise, summed

# What is differentiated: (params, batch, key, δ if any) → (Σ losses, Loss).
Total = Callable[..., tuple[Array, Loss]]
Grad = Callable[[Flat, Batch, Array], tuple[Flat, Loss]]


def fgm(total: Total, size: int, epsilon: float) -> Grad:
    """∇ of the loss, and ∇ of the loss at δ = ε g / ‖g‖ (Miyato et al. 2017, eqs. 4-6).

    g is the gradient by δ, of the same pass as the first ∇: two passes. Embeddings are not
    normalized before. It is `pgd`'s first step, of length ε.
    """
    return pgd(total, size, epsilon, epsilon, 1)


def pgd(total: Total, size: int, epsilon: float, step_size: float, steps: int) -> Grad:
    """∇ of the loss, and ∇ of the loss at δ_K (Madry et al. 2018, sec. 2.1), from δ_0 = 0.

    δ_k is `ascended` from δ_{k−1}. K + 1 passes, K − 1 of them without gradients of parameters.

    Args:
        total: what is differentiated.
        size: features of embedded words.
        epsilon: ε.
        step_size: α.
        steps: K.
    """

    def grad(params: Flat, batch: Batch, key: Array) -> tuple[Flat, Loss]:
        inside = members(batch)
        ascend = partial(ascended, inside, epsilon, step_size)

        def again(_: Any, shift: Array) -> Array:
            return ascend(shift, jax.grad(total, 3, has_aux=True)(params, batch, key, shift)[0])

        still = jnp.zeros((*inside[:, 0].shape, size))
        both = jax.grad(total, (0, 3), has_aux=True)
        (clean, slope), loss = both(params, batch, key, still)
        shift = ascend(still, slope)
        if steps > 1:
            shift = jax.lax.fori_loop(1, steps, again, shift)
        moved, worse = jax.grad(total, has_aux=True)(params, batch, key, shift)
        return jax.tree.map(jnp.add, clean, moved), Loss(loss.total + worse.total, loss.weight)

    return grad


def freelb(total: Total, size: int, epsilon: float, step_size: float, steps: int) -> Grad:
    """The mean of ∇ of the loss at δ_0, ..., δ_{K−1} (Zhu et al. 2020, alg. 1), δ_0 random.

    δ_k is `ascended` from δ_{k−1} by the gradient of the same pass: K passes. Arguments are those
    of `pgd`.
    """

    def grad(params: Flat, batch: Batch, key: Array) -> tuple[Flat, Loss]:
        ascend = partial(ascended, members(batch), epsilon, step_size)
        both = jax.grad(total, (0, 3), has_aux=True)

        def add(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
            shift, sums = carry
            (grads, slope), loss = both(params, batch, key, shift)
            return (ascend(shift, slope), jax.tree.map(jnp.add, sums, (grads, loss))), None

        first = noise(key_of("freelb", key), batch, size, epsilon)
        zero = jax.tree.map(partial(jnp.zeros_like, dtype=jnp.float32), params)
        sums = zero, Loss(jnp.zeros(()), jnp.zeros(()))
        (_, sums), _ = jax.lax.scan(add, (first, sums), length=steps)
        return jax.tree.map(lambda x: x / steps, sums)

    return grad


def ascended(inside: Array, epsilon: float, step_size: float, shift: Array, slope: Array) -> Array:
    """Π(δ + α g / ‖g‖), with Π the projection on the ball ‖δ‖ ≤ ε; norms are of an example.

    Args:
        inside: what `members` gives.
        epsilon: ε.
        step_size: α.
        shift: δ (rows, length, d).
        slope: g, likewise.
    """

    def norm(x: Array) -> Array:
        return jnp.sqrt(summed(jnp.square(x).sum(-1), inside))[..., None]

    steepest = norm(slope)
    shift = shift + jnp.where(steepest > 0, step_size * slope / steepest, 0)
    return shift * jnp.minimum(1, epsilon / jnp.maximum(norm(shift), epsilon))
