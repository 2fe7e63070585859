"""The next token from logits."""

import jax
import jax.numpy as jnp

from ftjax.generation.settings import Settings

Array = jax.Array


def adjust(settings: Settings, logits: Array, seen: Array | None, count: Array) -> Array:
    """Applies what holds however a token is then chosen.

    Args:
        settings: what is asked.
        logits: float32 (rows, vocabulary), or log-probabilities in beam search.
        seen: (rows, vocabulary), tokens that were there already; None without a penalty.
        count: tokens generated so far.
    """
    if seen is not None:
        penalty = settings.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
    if settings.banned:
        logits = logits.at[:, jnp.asarray(settings.banned)].set(-jnp.inf)
    if settings.min_new_tokens and settings.end:
        without = logits.at[:, jnp.asarray(settings.end)].set(-jnp.inf)
        logits = jnp.where(count < settings.min_new_tokens, without, logits)
    if settings.forced_first is not None:
        logits = jnp.where(count == 0, _only(logits, (settings.forced_first,)), logits)
    if settings.forced_last:
        last = count == settings.max_new_tokens - 1
        logits = jnp.where(last, _only(logits, settings.forced_last), logits)
    return logits


def _only(logits: Array, tokens: tuple[int, ...]) -> Array:
    return jnp.full_like(logits, -jnp.inf).at[:, jnp.asarray(tokens)].set(0.0)


def choose(settings: Settings, logits: Array, keys: Array) -> Array:
    """One token a row, the most probable or sampled: (rows,).

    Args:
        settings: what is asked.
        logits: float32 (rows, vocabulary).
        keys: one a row.
    """
    if settings.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    logits, tokens = logits / settings.temperature, None
    if settings.top_k or settings.top_p < 1:  # in descending order
        size = min(settings.top_k or logits.shape[-1], logits.shape[-1])
        logits, tokens = jax.lax.top_k(logits, size)
        probability = jax.nn.softmax(logits)
        before = jnp.cumsum(probability, -1) - probability
        logits = jnp.where(before < settings.top_p, logits, -jnp.inf)
    if settings.min_p:
        probability = jax.nn.softmax(logits)
        least = settings.min_p * probability.max(-1, keepdims=True)
        logits = jnp.where(probability >= least, logits, -jnp.inf)
    chosen = jax.vmap(jax.random.categorical)(keys, logits)
    if tokens is not None:
        chosen = jnp.take_along_axis(tokens, chosen[:, None], 1)[:, 0]
    return chosen.astype(jnp.int32)
