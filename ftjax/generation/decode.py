"""One token after another: a prompt is read once, then a compiled step goes round."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ftjax.errors import UserError
from ftjax.generation.choice import adjust, choose
from ftjax.generation.settings import Settings
from ftjax.paths import Flat
from ftjax.tuned import Tuned

Array = jax.Array
READ = ("tokens", "count", "finished", "likelihood")  # of a state: what is fetched from the devices


class Prompt(NamedTuple):
    """What the steps after a prompt need of it, besides what the model keeps.

    Attributes:
        ids: (rows, length) what the decoder has read, -1 where there is padding.
        mask: (rows, columns), nonzero where a token of the prompt stands, or one may follow.
        first: (rows,), the position of the first token generated.
        start: () the column of the first token generated.
        memory_mask: (rows, length) of an encoder's input.
    """

    ids: Array
    mask: Array
    first: Array
    start: Array
    memory_mask: Array | None = None


class State(NamedTuple):
    """A generation under way.

    Attributes:
        prompt: what the steps need of it.
        cache: what the model keeps.
        tokens: (rows, max_new_tokens), `pad` where nothing has come yet.
        count: () tokens generated.
        finished: (rows,), whether an end has come.
        keys: one a row.
        likelihood: (rows,), Σ log-probabilities of its tokens, the end among them, as the model
            has them before anything is adjusted.
        draft: what a draft model keeps, where there is one.
    """

    prompt: Prompt
    cache: Any
    tokens: Array
    count: Array
    finished: Array
    keys: Array
    likelihood: Array
    draft: Any = None


def read_prompt(
    tuned: Tuned, params: Flat, batch: Mapping[str, Array], room: int, first: int | None = None
) -> tuple[Array, Any, Prompt]:
    """Runs the model on a prompt.

    Args:
        tuned: a model under "causal_lm" or "seq2seq_lm".
        params: flat parameters.
        batch: input_ids and attention_mask (rows, length): a decoder's prompt is padded on the
            left, an encoder's input on the right.
        room: tokens that may follow.
        first: see `Settings.start`.

    Returns:
        Logits of the first token (rows, vocabulary), what the model keeps, and the prompt.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    rows, length = ids.shape
    if tuned.model.head == "causal_lm":
        wide = jnp.concatenate([mask, jnp.ones((rows, room - 1), mask.dtype)], 1)
        positions = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
        inputs = {"input_ids": ids, "attention_mask": wide, "position_ids": positions}
        read = jnp.where(mask > 0, ids, -1)
        prompt = Prompt(read, wide, positions[:, -1] + 1, jnp.asarray(length))
    else:
        wide = jnp.ones((rows, room), jnp.int32)
        start = jnp.full((rows, 1), tuned.config.start if first is None else first)
        inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": start}
        inputs["decoder_attention_mask"] = wide
        prompt = Prompt(start, wide, jnp.ones(rows, jnp.int32), jnp.asarray(1), mask)
    logits, cache = tuned.apply_cached(params, None, inputs)
    return logits[:, -1], cache, prompt


def next_logits(
    tuned: Tuned, params: Flat, cache: Any, prompt: Prompt, last: Array, count: Array
) -> tuple[Array, Any]:
    """Logits (rows, vocabulary) after the `count`-th token generated, `last` (rows,)."""
    logits, cache = logits_after(tuned, params, cache, prompt, last[:, None], count)
    return logits[:, -1], cache


def logits_after(
    tuned: Tuned, params: Flat, cache: Any, prompt: Prompt, ids: Array, count: Array
) -> tuple[Array, Any]:
    """Logits (rows, tokens, vocabulary) after each of `ids` (rows, tokens).

    The first of them is the `count`-th token generated; several, only of a decoder.
    """
    column = prompt.start + count - 1
    if prompt.memory_mask is None:
        places = (prompt.first + count - 1)[:, None] + jnp.arange(ids.shape[1])
        limit = positions(tuned)  # that tokens which are not taken may lie beyond
        places = places if limit is None else jnp.minimum(places, limit - 1)
        inputs = {"input_ids": ids, "attention_mask": prompt.mask, "position_ids": places}
    else:
        inputs = {"decoder_input_ids": ids, "decoder_attention_mask": prompt.mask}
        inputs["attention_mask"] = prompt.memory_mask
    return tuned.apply_cached(params, cache, {**inputs, "column": column})


def repeated(tree: Any, times: int) -> Any:
    """Every row `times` over, next to each other, of what a prompt gave."""
    if times == 1:
        return tree

    def repeat(leaf: Array) -> Array:  # kept keys may have the layers before the rows
        return jnp.repeat(leaf, times, max(leaf.ndim - 4, 0)) if leaf.ndim else leaf

    return jax.tree.map(repeat, tree)


def start(tuned: Tuned, settings: Settings, params: Flat, batch: Mapping[str, Array]) -> State:
    """Reads a prompt and chooses the first token.

    `batch` has "numbers" (rows,) besides, which name the prompts for sampling.
    """
    many = settings.num_return_sequences
    room = settings.max_new_tokens + settings.ahead
    logits, cache, prompt = read_prompt(tuned, params, batch, room, settings.start)
    logits, cache, prompt = repeated((logits, cache, prompt), many)
    rows = logits.shape[0]
    key, copies = jax.random.key(settings.seed), jnp.tile(jnp.arange(many), rows // many)
    fold = jax.vmap(lambda n, copy: jax.random.fold_in(jax.random.fold_in(key, n), copy))
    state = State(
        prompt,
        cache,
        jnp.full((rows, settings.max_new_tokens), settings.pad, jnp.int32),
        jnp.asarray(0),
        jnp.zeros(rows, bool),
        fold(jnp.repeat(batch["numbers"], many), copies),
        jnp.zeros(rows),
    )
    return add(settings, state, logits)


def add(settings: Settings, state: State, logits: Array) -> State:
    """The state with one more token a row."""
    keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.count)
    adjusted = adjust(settings, logits, state.prompt.ids, state.tokens, state.count)
    token = jnp.where(state.finished, settings.pad, choose(settings, adjusted, keys))
    chosen = jnp.take_along_axis(logits, token[:, None], 1)[:, 0]
    added = chosen - jax.nn.logsumexp(logits, -1)
    return state._replace(
        likelihood=state.likelihood + jnp.where(state.finished, 0, added),
        tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.count, 1),
        count=state.count + 1,
        finished=state.finished | ends(settings, token),
    )


def ends(settings: Settings, token: Array) -> Array:
    """Whether each token ends a text."""
    return jnp.isin(token, jnp.asarray(settings.end, jnp.int32))


def go_on(tuned: Tuned, settings: Settings, params: Flat, state: State, until: Array) -> State:
    """Generates until there are `until` tokens, or all rows are finished."""

    def unfinished(state: State) -> Array:
        return (state.count < until) & ~state.finished.all()

    def step(state: State) -> State:
        last = jax.lax.dynamic_index_in_dim(state.tokens, state.count - 1, 1, keepdims=False)
        logits, cache = next_logits(tuned, params, state.cache, state.prompt, last, state.count)
        return add(settings, state._replace(cache=cache), logits)

    return jax.lax.while_loop(unfinished, step, state)


def positions(tuned: Tuned) -> int | None:
    """What a model has a table of; None: any number, as with rotary ones."""
    return None if getattr(tuned.config, "rotaries", ()) else tuned.longest


def room(tuned: Tuned, settings: Settings) -> int | None:
    """Tokens that a prompt may have; None: any number."""
    limit = positions(tuned)
    before = settings.max_new_tokens if tuned.model.head == "causal_lm" else 0
    return None if limit is None else limit - before


def check(tuned: Tuned, settings: Settings, length: int) -> None:
    """Refuses a model without a language-model head, or without so many positions.

    Raises:
        UserError: either.
    """
    if tuned.model.head not in ("causal_lm", "seq2seq_lm"):
        raise UserError(f"generation needs a language-model head, not {tuned.model.head!r}")
    limit, count = positions(tuned), settings.max_new_tokens
    needed = length + count if tuned.model.head == "causal_lm" else max(length, count)
    if limit is not None and needed > limit:
        raise UserError(
            f"prompt and max_new_tokens need {needed} positions, and the model has {limit}"
        )
