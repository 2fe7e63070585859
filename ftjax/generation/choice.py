"""The next token from logits."""

import jax
import jax.numpy as jnp

from ftjax.generation.settings import Settings

Array = jax.Array


def adjust(settings: Settings, logits: Array, before: Array, tokens: Array, count: Array) -> Array:
    """Applies what holds however a token is then chosen.

    Args:
        settings: what is asked.
        logits: float32 (rows, vocabulary), or log-probabilities in beam search.
        before: (rows, columns), the prompt's tokens, -1 where there is none.
        tokens: (rows, max_new_tokens), of which `count` are generated.
        count: tokens generated so far.
    """
    generated = jnp.where(jnp.arange(tokens.shape[1]) < count, tokens, -1)
    written = jnp.concatenate([before, generated], 1)
    if settings.repetition_penalty != 1:
        penalty = settings.repetition_penalty
        changed = jnp.where(logits < 0, logits * penalty, logits / penalty)
        logits = jnp.where(_among(logits, written, written >= 0), changed, logits)
    if settings.no_repeat_ngram_size:
        end = before.shape[1] + count
        logits = _without_repeats(logits, written, end, settings.no_repeat_ngram_size)
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


def _among(logits: Array, tokens: Array, chosen: Array) -> Array:
    """Which of the vocabulary stands among the `chosen` of tokens (rows, columns)."""
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros(logits.shape, bool).at[rows, jnp.maximum(tokens, 0)].max(chosen)


def _without_repeats(logits: Array, written: Array, end: Array, size: int) -> Array:
    """Logits without the tokens that would make a run of `size` tokens come twice.

    Args:
        logits: (rows, vocabulary).
        written: (rows, columns), -1 where there is no token.
        end: () the column of the token to come.
        size: of the runs.
    """
    shared = size - 1  # tokens that a run has before its last
    written = jnp.pad(written, ((0, 0), (shared, 0)), constant_values=-1)
    latest = jax.lax.dynamic_slice_in_dim(written, end, shared, 1)
    width = written.shape[1] - shared
    last = written[:, shared:]
    same = last >= 0
    for k in range(shared):
        same &= (written[:, k : k + width] == latest[:, k : k + 1]) & (latest[:, k : k + 1] >= 0)
    return jnp.where(_among(logits, last, same), -jnp.inf, logits)


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
