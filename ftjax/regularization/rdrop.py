"""R-Drop (Liang et al. 2021): two passes under different dropout, which shall say the same."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftjax.errors import require
from ftjax.loss import Loss
from ftjax.models.language_head import Scores
from ftjax.regularization.words import Array, Batch, key_of


def of_classes(p: Array, q: Array) -> Array:
    """½ (KL(P ‖ Q) + KL(Q ‖ P)) = ½ Σ (P − Q) (p − q) of softmaxes P and Q of logits p and q."""
    return 0.5 * ((jax.nn.softmax(p) - jax.nn.softmax(q)) * (p - q)).sum(-1)


def of_binaries(p: Array, q: Array) -> Array:
    """The same of sigmoids, their mean."""
    return 0.5 * ((jax.nn.sigmoid(p) - jax.nn.sigmoid(q)) * (p - q)).mean(-1)


def of_numbers(p: Array, q: Array) -> Array:
    """(p − q)², which the authors take for regression."""
    return jnp.square(p - q).sum(-1)


# problem type of a classifier → how far apart two of its outputs (..., outputs) are: (...)
DIVERGENCES = {
    "single_label_classification": of_classes,
    "multi_label_classification": of_binaries,
    "regression": of_numbers,
}


def rdrop(
    once: Callable[[Callable[[Callable], Callable], Array], Loss],
    key: Array,
    alpha: float,
    divergence: Callable[[Array, Array], Array],
) -> Loss:
    """½ (ℓ₁ + ℓ₂) + α · ½ (KL(P₁ ‖ P₂) + KL(P₂ ‖ P₁)), as in the authors' published code.

    Their eq. 4 adds ℓ₁ and ℓ₂ up instead: the α there is twice this one. Of language models, the
    logits of both passes exist at once, which otherwise they never do.

    Args:
        once: the loss of a pass, of what wraps the model and a key.
        key: of the first pass.
        alpha: α.
        divergence: of two outputs.

    Raises:
        UserError: nothing is drawn in a pass, so that two are the same; or outputs are of what
            has no weight.
    """
    drawn = str(jax.make_jaxpr(lambda key: once(lambda model: model, key))(key))
    require(
        "random_bits" in drawn,
        "regularization.rdrop compares passes under dropout, and here nothing is dropped: neither "
        "the model nor the method has a dropout; method.dropout may be set where there is one",
    )
    seen: list[tuple[Array, Array]] = []
    watch = partial(watched, seen=seen)
    first, second = once(watch, key), once(watch, key_of("rdrop", key))
    (p, weights), (q, _) = seen
    known = weights.shape == p.shape[:-1]
    require(known, "regularization.rdrop: the task's outputs are not one an example, or a token")
    apart = jnp.sum(weights * divergence(p, q))
    return Loss(0.5 * (first.total + second.total) + alpha * apart, first.weight)


def watched(
    apply: Callable[..., Any], seen: list[tuple[Array, Array]]
) -> Callable[..., Array | Scores]:
    """A model whose logits, and what each weighs, are put into `seen`."""

    def call(batch: Batch, *change: Any) -> Array | Scores:
        if "targets" not in batch:
            logits, weights = apply(batch, *change), batch["weights"]
            seen.append((logits, weights))
            return logits
        targets, weights = batch["targets"], batch["target_weights"]
        rest = {name: x for name, x in batch.items() if not name.startswith("target")}
        logits = apply(rest, *change)
        seen.append((logits, weights))
        losses = weights * optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        hits = weights * (logits.argmax(-1) == targets)
        total = losses.sum()
        if smoothing := batch.get("target_smoothing", 0.0):
            even = -weights * jax.nn.log_softmax(logits).mean(-1)
            total = (1 - smoothing) * total + smoothing * even.sum()
        return Scores(total, weights.sum(), jnp.stack([losses, hits], -1))

    return call
