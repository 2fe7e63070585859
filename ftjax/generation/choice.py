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
    if size > written.shape[1]:
        return logits
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
    logits = truncated(settings, logits / settings.temperature)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def truncated(settings: Settings, logits: Array) -> Array:
    """Logits, -inf of tokens that are too improbable to be sampled."""
    candidates = logits
    if 0 < settings.top_k < logits.shape[-1]:
        candidates = jax.lax.top_k(logits, settings.top_k)[0]
        logits = jnp.where(logits < candidates[:, -1:], -jnp.inf, logits)
    if settings.top_p < 1:
        logits = jnp.where(nucleus(logits, settings.top_p, candidates), logits, -jnp.inf)
    if settings.min_p:
        probability = jax.nn.softmax(logits)
        least = settings.min_p * probability.max(-1, keepdims=True)
        logits = jnp.where(probability >= least, logits, -jnp.inf)
    return logits


def nucleus(logits: Array, top_p: float, candidates: Array) -> Array:
    """The fewest tokens whose probabilities reach `top_p`; of equals those with higher numbers.

    A token is of them where those before it, of more probability, have less than `top_p`
    together. The least logit of which that holds is found bit by bit, without sorting.

    Args:
        logits: float32 (rows, vocabulary).
        top_p: above 0.
        candidates: (rows, any), the largest of the logits, or all; those that equal the least
            of them may be missing, and those below it are -inf in `logits`.
    """
    total = jax.nn.logsumexp(logits, -1, keepdims=True)
    ranks, mass = ordered(candidates), jnp.exp(candidates - total)

    def before(rank: Array) -> Array:
        return jnp.where(ranks > rank, mass, 0).sum(-1, keepdims=True)

    def lower(i: Array, least: Array) -> Array:
        trial = least ^ (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
        return jnp.where(before(trial) < top_p, trial, least)

    start = jnp.full_like(ranks[:, :1], 0xFFFFFFFF)
    least = jax.lax.fori_loop(0, 32, lower, start)
    least = jnp.maximum(least, ranks.min(-1, keepdims=True))  # below it, `before` is not known
    all_ranks = ordered(logits)
    equal = all_ranks == least
    behind = jax.lax.cumsum(equal.astype(jnp.int32), 1, reverse=True) - 1
    equal_mass = jnp.exp(jnp.where(equal, logits, -jnp.inf).max(-1, keepdims=True) - total)
    return (all_ranks > least) | (equal & (before(least) + behind * equal_mass < top_p))


def ordered(x: Array) -> Array:
    """uint32 in the order of float32."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)  # -0 is 0
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
