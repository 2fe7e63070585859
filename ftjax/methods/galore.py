"""GaLore (Zhao et al. 2024): full fine-tuning whose moments are of low-rank gradients."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftjax.base_model import Base
from ftjax.errors import UserError, require
from ftjax.methods.low_rank import each_matrix
from ftjax.methods.method import Method, Transform, present
from ftjax.methods.selection import TOP, Full
from ftjax.options import Positive
from ftjax.partition import Rules
from ftjax.paths import Flat, expand

CLEAR = 1e-3  # of the largest eigenvalue of GGᵀ: what is above is exact to about 1e-4


class Projected(NamedTuple):
    """Optimizer state: the projections, and the moments in their spaces."""

    bases: Flat
    core: Any


@dataclass(frozen=True)
class Galore(Full):
    """Trains all; a projection's gradient is seen by the optimizer in its r leading directions.

    For G of shape (m, n), m ≤ n: R = PᵀG with P the first r left singular vectors of a G every T
    steps; the update is α · P · step(R) (alg. 2); for m > n the same from the right. Adam's
    moments take 2rn instead of 2mn, and P mr. Embeddings, norms, biases and the head, and
    matrices of which the smaller side is not above r, are trained as they are.

    Attributes:
        rank: r.
        every: T.
        scale: α.
    """

    rank: Positive = 128
    every: Positive = 200
    scale: float = 0.25

    def rules(self, base: Base) -> Rules:
        inner = {p: min(shape) for p, shape in base.projections().items() if p not in TOP}
        most = max(inner.values())
        require(self.rank < most, f"method.rank={self.rank} is not below any side: at most {most}")
        wide = [path for path, side in inner.items() if side > self.rank]
        names = "|".join(re.escape(name) for path in wide for name in expand(path))
        return ((rf"({names})/kernel", "projected"), (r".*", "backbone"))

    def at_step(self, step: int, base: Base) -> Method:
        return Step(self.rank, self.every, self.scale, step % self.every == 0)

    def optimizer(
        self, base: Base, group: str, core: Transform, rest: Transform, steps: int
    ) -> Transform:
        if group == "projected":
            core = projected(core, self.rank, self.scale, self.refresh)
        return optax.chain(core, rest)

    @property
    def refresh(self) -> bool:
        """Whether directions are found anew: a program of its own, for it decomposes matrices."""
        return True


@dataclass(frozen=True)
class Step(Galore):
    """GaLore at a step."""

    refresh: bool = True


def leading(grad: jax.Array, rank: int) -> jax.Array:
    """The first r singular vectors of the smaller side: (..., min(m, n), r).

    Their signs are free; each one's largest component is made positive, so that the moments keep
    their sense when directions are found anew, on every machine alike.
    """
    tall = grad.shape[-2] > grad.shape[-1]
    wide = jnp.swapaxes(grad, -1, -2) if tall else grad
    vectors = each_matrix(partial(left_vectors, rank=rank), wide)
    largest = jnp.take_along_axis(vectors, jnp.abs(vectors).argmax(-2, keepdims=True), -2)
    return vectors * jnp.sign(largest)


def left_vectors(grad: jax.Array, rank: int) -> jax.Array:
    """The first r left singular vectors (m, r) of a matrix (m, n), m ≤ n.

    They are eigenvectors of GGᵀ, (m, m), whose decomposition costs a fraction of G's. Squared in
    float32, singular values below 3e-4 of the largest are lost. Where the r-th is not well above,
    the directions that are clear are taken out, and the rest is decomposed in the same way: down
    to 1e-5.
    """
    grad = grad / jnp.maximum(jnp.abs(grad).max(), jnp.finfo(grad.dtype).tiny)
    values, vectors = descending(product(grad, grad.T))
    clear = values > CLEAR * values[0]

    def again() -> jax.Array:
        rest = jnp.where(clear[:, None], 0, product(vectors.T, grad))
        gram = product(rest, rest.T)
        # What is taken out comes last, apart from directions in which there is nothing.
        gram = gram - jnp.diag(jnp.where(clear, jnp.diag(gram).max(), 0))
        turned = product(vectors, descending(gram)[1])
        return jnp.where(clear, vectors, jnp.roll(turned, clear.sum(), 1))

    return jax.lax.cond(clear[rank - 1], lambda: vectors, again)[:, :rank]


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y, precision="highest")


def descending(symmetric: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors, the largest first."""
    values, vectors = jnp.linalg.eigh(symmetric)
    return values[::-1], vectors[:, ::-1]


def down(grad: jax.Array, basis: jax.Array) -> jax.Array:
    """A gradient in its leading directions: PᵀG, or G P where the second side is smaller."""
    if grad.shape[-2] > grad.shape[-1]:
        return grad @ basis
    return jnp.swapaxes(basis, -1, -2) @ grad


def up(low: jax.Array, basis: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `down` on what it keeps."""
    if shape[-2] > shape[-1]:
        return low @ jnp.swapaxes(basis, -1, -2)
    return basis @ low


def projected(core: Transform, rank: int, scale: float, refresh: bool) -> Transform:
    """`core` in the leading directions of each leaf's gradient, this one's or an earlier one's."""

    def init(params: Flat) -> Projected:
        leaves = present(params)
        # Directions even where the first step is skipped: those of the first axes.
        bases = {
            path: jnp.broadcast_to(
                jnp.eye(min(x.shape[-2:]), rank), (*x.shape[:-2], min(x.shape[-2:]), rank)
            )
            for path, x in leaves.items()
        }
        lows = {path: down(x, bases[path]) for path, x in leaves.items()}
        moments = core.init(lows)
        try:
            jax.eval_shape(core.update, lows, moments)
        except ValueError as error:  # optax's, of what asks for parameters
            raise UserError(
                "method.name=galore gives the optimizer gradients in a few directions, and this "
                "one reads whole parameters besides: use optimizer.name=adamw or lion"
            ) from error
        return Projected(bases, moments)

    def update(grads: Flat, state: Projected, params: Any = None) -> tuple[Flat, Projected]:
        full, bases = present(grads), state.bases
        if refresh:
            bases = {path: leading(grad, rank) for path, grad in full.items()}
        lows = {path: down(grad, bases[path]) for path, grad in full.items()}
        steps, moments = core.update(lows, state.core, None)
        whole = {path: scale * up(s, bases[path], full[path].shape) for path, s in steps.items()}
        return {**grads, **whole}, Projected(bases, moments)

    return optax.GradientTransformation(init, update)
