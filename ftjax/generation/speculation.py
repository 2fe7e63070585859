"""Tokens that are guessed, and read by the model at once (Leviathan et al. 2023).

What is guessed is taken as long as it is what would be chosen without: the model chooses each token
from its own logits, with the key of its number, so that greedy and sampled texts are the same as
token by token, but for rounding, where two logits are as good as equal. Rows of a batch go on
together: what one of them would not have chosen is chosen anew for all.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ftjax.errors import require
from ftjax.generation import decode
from ftjax.generation.decode import State, add, logits_after, next_logits, read_prompt
from ftjax.generation.settings import Settings
from ftjax.models.masks import ONE_BY_ONE
from ftjax.paths import Flat
from ftjax.tuned import Tuned

Array = jax.Array
LONGEST, SHORTEST = 3, 2  # tokens by which what was written before is looked up


class Params(NamedTuple):
    """Parameters of the model, and of the draft model where there is one."""

    model: Flat
    draft: Flat | None = None


def check(tuned: Tuned, settings: Settings, draft: Tuned | None) -> None:
    """Whether a model can read several tokens at once.

    Raises:
        UserError: it cannot, or the draft model has other words.
    """
    assistant = settings.num_assistant_tokens > 0
    require(assistant == (draft is not None), "num_assistant_tokens goes with a draft model")
    for model in filter(None, (tuned, draft)):
        is_decoder = model.model.head == "causal_lm"
        require(is_decoder, "tokens are guessed for decoders alone, not for encoder-decoders")
        require(not any(model.config.windows), ONE_BY_ONE)
    if draft is not None:
        sizes = tuned.config.vocab_size, draft.config.vocab_size
        require(
            len({*sizes}) == 1, f"the draft model has {sizes[1]:,} words, the model {sizes[0]:,}"
        )


def start(
    tuned: Tuned, settings: Settings, draft: Tuned | None, params: Params, batch: dict[str, Array]
) -> State:
    """As `decode.start`, with what a draft model keeps."""
    state = decode.start(tuned, settings, params.model, batch)
    if draft is None:
        return state
    room = settings.max_new_tokens + settings.ahead
    _, cache, _ = read_prompt(draft, params.draft, batch, room)
    return state._replace(draft=decode.repeated(cache, settings.num_return_sequences))


def go_on(
    tuned: Tuned,
    settings: Settings,
    draft: Tuned | None,
    params: Params,
    state: State,
    until: Array,
) -> State:
    """As `decode.go_on`, with several tokens a pass where they can be guessed."""

    def unfinished(state: State) -> Array:
        return (state.count < until) & ~state.finished.all()

    def one(state: State, _: Array) -> State:
        last = _written(state, state.count - 1)
        logits, cache = next_logits(
            tuned, params.model, state.cache, state.prompt, last, state.count
        )
        return add(settings, state._replace(cache=cache), logits)

    def several(state: State, guessed: Array) -> State:
        ids = jnp.concatenate([_written(state, state.count - 1)[:, None], guessed], 1)
        read = tuned, params.model, state.cache, state.prompt, ids, state.count
        logits, cache = logits_after(*read)
        # What the cache holds of tokens that are not taken is written over before it is seen.
        kept, state = state.draft, state._replace(cache=None, draft=None)
        state, right = add(settings, state, logits[:, 0]), jnp.asarray(True)
        for number in range(1, ids.shape[1]):
            same = ids[:, number] == _written(state, state.count - 1)
            right &= (same | state.finished).all() & unfinished(state)
            following = partial(add, settings, logits=logits[:, number])
            state = jax.lax.cond(right, following, lambda state: state, state)
        return state._replace(cache=cache, draft=kept)

    def step(state: State) -> State:
        if draft is None:
            guessed, known = looked_up(state, settings.ahead)
            known = (known | state.finished).all()
            return jax.lax.cond(known, several, one, state, guessed)
        guessed, kept = drafted(draft, params.draft, state, settings.ahead)
        return several(state._replace(draft=kept), guessed)

    return jax.lax.while_loop(unfinished, step, state)


def _written(state: State, number: Array) -> Array:
    """(rows,) the token of a number that was generated."""
    return jax.lax.dynamic_index_in_dim(state.tokens, number, 1, keepdims=False)


def drafted(draft: Tuned, params: Flat, state: State, ahead: int) -> tuple[Array, Any]:
    """`ahead` tokens a row that a draft model finds the most probable, and what it keeps then.

    The last of them is read too: it may be taken.
    """

    def guess(carry: tuple[Any, Array], number: Array) -> tuple[tuple[Any, Array], Array]:
        cache, last = carry
        logits, cache = next_logits(draft, params, cache, state.prompt, last, state.count + number)
        token = jnp.argmax(logits, -1).astype(jnp.int32)
        return (cache, token), token

    first = state.draft, _written(state, state.count - 1)
    (cache, _), tokens = jax.lax.scan(guess, first, jnp.arange(ahead + 1))
    return tokens[:-1].T, cache


def looked_up(state: State, ahead: int) -> tuple[Array, Array]:
    """What came after the last tokens where they were written before (Saxena 2023).

    Of places where `LONGEST` of them stand, or else `SHORTEST`, the latest; what repeats itself
    goes on so.

    Returns:
        Tokens (rows, ahead), and whether there is such a place (rows,).
    """
    before = state.prompt.ids
    generated = jnp.where(jnp.arange(state.tokens.shape[1]) < state.count, state.tokens, -1)
    written = jnp.concatenate([before, generated], 1)
    end, places = before.shape[1] + state.count, jnp.arange(written.shape[1])
    rank, same = jnp.full(written.shape, -1), jnp.ones(written.shape, bool)
    for size in range(1, LONGEST + 1):
        latest = jax.lax.dynamic_slice_in_dim(written, end - size, 1, 1)
        shifted = jnp.pad(written, ((0, 0), (size - 1, 0)), constant_values=-1)
        same &= (shifted[:, : written.shape[1]] == latest) & (latest >= 0) & (places < end - 1)
        if size >= SHORTEST:
            rank = jnp.where(same, size * written.shape[1] + places, rank)
    at = jnp.argmax(rank, 1)[:, None]
    after = at + 1 + jnp.arange(ahead) % jnp.maximum(end - 1 - at, 1)
    tokens = jnp.take_along_axis(written, jnp.minimum(after, written.shape[1] - 1), 1)
    return jnp.maximum(tokens, 0), rank.max(1) >= 0
