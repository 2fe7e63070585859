"""Beam search, as `transformers` has it: the best hypotheses run on beside those finished."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ftjax.generation.choice import adjust
from ftjax.generation.decode import Prompt, ends, next_logits, read_prompt, repeated
from ftjax.generation.settings import Settings
from ftjax.paths import Flat
from ftjax.tuned import Tuned

Array = jax.Array
READ = ("done_tokens", "done_scores")  # of a state: what is fetched from the devices
LOW = -1e9  # of what must not be chosen; finite, so that differences stay defined


class State(NamedTuple):
    """A search under way, over prompts p and beams b.

    Attributes:
        prompt: what the steps need of it, rows p · b.
        cache: what the model keeps, rows p · b.
        tokens: (p, b, max_new_tokens) of the hypotheses that run on.
        scores: (p, b) their log-probabilities.
        done_tokens, done_scores: the same of the best finished ones, scores with the length
            penalty, in descending order; `LOW` for none.
        done: (p, b) whether there is one.
        hopeful: (p,) whether a running one may still be better than those finished.
        more: () whether to go on.
        count: () tokens generated.
    """

    prompt: Prompt
    cache: Any
    tokens: Array
    scores: Array
    done_tokens: Array
    done_scores: Array
    done: Array
    hopeful: Array
    more: Array
    count: Array


def start(tuned: Tuned, settings: Settings, params: Flat, batch: Mapping[str, Array]) -> State:
    """Reads the prompts and chooses the first tokens."""
    beams = settings.num_beams
    logits, cache, prompt = read_prompt(
        tuned, params, batch, settings.max_new_tokens, settings.start
    )
    logits, cache, prompt = repeated((logits, cache, prompt), beams)
    shape = (logits.shape[0] // beams, beams)
    nothing = jnp.full((*shape, settings.max_new_tokens), settings.pad, jnp.int32)
    first = jnp.where(jnp.arange(beams) == 0, 0.0, LOW)  # all beams are alike: begin with one
    state = State(
        prompt,
        cache,
        nothing,
        jnp.broadcast_to(first, shape),
        nothing,
        jnp.full(shape, LOW),
        jnp.zeros(shape, bool),
        jnp.ones(shape[0], bool),
        jnp.asarray(True),
        jnp.asarray(0),
    )
    return extend(settings, state, logits)


def extend(settings: Settings, state: State, logits: Array) -> State:
    """The state after one more token, from logits (p · b, vocabulary)."""
    prompts, beams, room = state.tokens.shape
    size, count = logits.shape[-1], state.count + 1
    written = state.tokens.reshape(-1, room)
    scores = jax.nn.log_softmax(logits)
    scores = adjust(settings, scores, state.prompt.ids, written, state.count)
    scores = (scores.reshape(prompts, beams, size) + state.scores[..., None]).reshape(prompts, -1)
    # So many that `beams` go on even where every end of a text is among the best.
    many = max(2, 1 + len(settings.end)) * beams
    scores, indices = jax.lax.top_k(scores, many)
    origin, token = indices // size, (indices % size).astype(jnp.int32)
    tokens = jnp.take_along_axis(state.tokens, origin[..., None], 1)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, token[..., None], state.count, 2)
    stops = ends(settings, token) | (count >= room)

    running, best = jax.lax.top_k(scores + stops * LOW, beams)
    origin = jnp.take_along_axis(origin, best, 1)
    rows = (origin + beams * jnp.arange(prompts)[:, None]).reshape(-1)

    full = state.done.all(1) & (settings.early_stopping is True)
    finished = stops & (jnp.arange(many) < beams)
    ranked = scores / count.astype(jnp.float32) ** settings.length_penalty
    ranked = ranked + (full | ~state.hopeful)[:, None] * LOW + ~finished * LOW
    done_scores, best_done = jax.lax.top_k(jnp.concatenate([state.done_scores, ranked], 1), beams)
    done = _take(jnp.concatenate([state.done, finished], 1), best_done)
    done_tokens = jnp.concatenate([state.done_tokens, tokens], 1)

    length = room if settings.early_stopping == "never" and settings.length_penalty > 0 else count
    possible = running[:, 0] / jnp.asarray(length, jnp.float32) ** settings.length_penalty
    worst = jnp.where(done, done_scores.min(1, keepdims=True), LOW)
    hopeful = state.hopeful & (possible[:, None] > worst).any(1)
    open_beam = ~(done.all() & (settings.early_stopping is True))
    return state._replace(
        cache=_reorder(state.cache, rows),
        tokens=_take(tokens, best),
        scores=running,
        done_tokens=_take(done_tokens, best_done),
        done_scores=done_scores,
        done=done,
        hopeful=hopeful,
        more=hopeful.any() & open_beam & ~stops.all(),
        count=count,
    )


def go_on(tuned: Tuned, settings: Settings, params: Flat, state: State, until: Array) -> State:
    """Searches until hypotheses have `until` tokens, or no better can be found."""

    def step(state: State) -> State:
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.count - 1, 2, keepdims=False)
        logits, cache = next_logits(
            tuned, params, state.cache, state.prompt, last.reshape(-1), state.count
        )
        return extend(settings, state._replace(cache=cache), logits)

    return jax.lax.while_loop(lambda state: state.more & (state.count < until), step, state)


def _take(values: Array, places: Array) -> Array:
    """The beams of values (p, many, ...) that stand at places (p, b)."""
    return jnp.take_along_axis(values, places.reshape(*places.shape, *(1,) * (values.ndim - 2)), 1)


def _reorder(cache: Any, rows: Array) -> Any:
    """What the model keeps, of the rows named; an encoder's keys are alike in all beams."""

    def reorder(path: tuple, leaf: Array) -> Array:
        if any(getattr(part, "key", None) == "cross" for part in path):
            return leaf
        return jnp.take(leaf, rows, leaf.ndim - 4)

    return jax.tree_util.tree_map_with_path(reorder, cache)
