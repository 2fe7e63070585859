"""Virtual tokens before each example: how a model's inputs grow, and its outputs shrink back."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.methods.interception import Interceptor, at, nested
from ftjax.methods.relay import Relay

Array = jax.Array
Inputs = dict[str, Any]
# Heads whose outputs have a row a token; of an encoder-decoder, a row a token that is read.
EACH_TOKEN = (None, "tokens", "span", "masked_lm", "causal_lm", "pretraining")
EACH_TOKEN_READ = ("tokens",)
BLANK = dict.fromkeys(("input_ids", "token_type_ids", "targets", "target_weights", "entities"), 0)


class Positions(NamedTuple):
    """Where everything stands in packed rows that have grown.

    Attributes:
        tokens: (batch, length), of each token.
        virtual: (batch, longer), the number of the virtual token there; negative for none.
    """

    tokens: Array
    virtual: Array


def widened(x: Array, count: int, value: Any) -> Array:
    """`count` of `value` in front of the last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(count, 0)], constant_values=value)


def later(inputs: Inputs, count: int) -> Inputs:
    """Inputs of an encoder or a decoder, with tokens at positions `count` further on."""
    ids, positions = inputs["input_ids"], inputs.get("position_ids")
    if positions is None:
        positions = inputs.get("column")
        positions = jnp.arange(ids.shape[-1]) if positions is None else positions
        positions = positions.reshape((1,) * (ids.ndim - 1) + (-1,))
    return inputs | {"position_ids": positions + count}


def moved_sides(sides: Collection[str], tokens: int, keys: int) -> Interceptor | None:
    """Positions of an encoder-decoder's sides: those of tokens `tokens` further on.

    Relative positions are of keys from 0, with `keys` of them before those of tokens.
    """

    def relative(module: nn.Module, call: Callable, queries: Array, real: Array) -> Array:
        return call(queries + tokens, jnp.concatenate([jnp.arange(keys), real + keys]))

    def first(module: nn.Module, call: Callable, count: int, start: int = 0) -> Array:
        return call(count, start + tokens)

    def looked_up(module: nn.Module, call: Callable, ids: Array) -> Array:
        return call(ids + tokens)

    tables = {f"{side}/positions" for side in sides}
    biases = {f"{side}/relative" for side in sides}
    return nested(at(biases, relative), at(tables, first, "first"), at(tables, looked_up))


def next_token(base: Base, inputs: Inputs, count: int) -> Inputs:
    """Inputs of one more token after rows that had `count` virtual tokens in front."""
    if inputs.get("attention_mask") is not None:
        inputs = inputs | {"attention_mask": widened(inputs["attention_mask"], count, 1)}
    if base.two_sided:  # whose decoder has none
        return inputs
    return later(inputs, count) | {"column": inputs["column"] + count}


def longer(inputs: Inputs, count: int) -> Inputs:
    """Inputs whose rows begin with `count` virtual tokens, of id 0 and type 0, which all see."""
    grown = dict(inputs)
    for name, value in {"attention_mask": 1, **BLANK}.items():
        if inputs.get(name) is not None:
            grown[name] = widened(inputs[name], count, value)
    if inputs.get("position_ids") is not None:
        after = widened(inputs["position_ids"] + count, count, 0)
        grown["position_ids"] = after.at[..., :count].set(jnp.arange(count))
    if inputs.get("at_positions") is not None:
        grown["at_positions"] = inputs["at_positions"] + count
    if inputs.get("perm_mask") is not None:
        seen = widened(inputs["perm_mask"].swapaxes(-1, -2), count, 0)
        grown["perm_mask"] = widened(seen.swapaxes(-1, -2), count, 0)
    return grown


def moved_tokens(segments: Array, count: int) -> Array:
    """Where packed tokens stand, (rows, length), once `count` virtual ones precede each example."""
    before = jax.lax.cummax(segments, axis=1)  # padding goes on after what it follows
    return jnp.arange(segments.shape[1]) + count * before


def changed_words(base: Base, inputs: Inputs, change: Callable[[Array], Array]) -> Interceptor:
    """Makes something of the embeddings (rows, length, d) of the tokens that a model is given.

    Virtual tokens, which methods put among them, stay as they are; so does what is looked up
    later: token types, or what a decoder reads. To be nested outermost.
    """
    first: Relay[Callable[[Array], Array]] = Relay()
    first.value = change

    def embedded(module: nn.Module, call: Callable, ids: Array) -> Array:
        x, change = call(ids), first.take()
        if change is None:
            return x
        count = x.shape[1] - inputs["input_ids"].shape[-1]
        if not count:
            return change(x)
        if inputs.get("segment_ids") is None:
            return jnp.concatenate([x[:, :count], change(x[:, count:])], 1)
        tokens = moved_tokens(inputs["segment_ids"], count // inputs["starts"].shape[1])
        changed = change(jnp.take_along_axis(x, tokens[..., None], axis=1))
        return x.at[jnp.arange(len(x))[:, None], tokens].set(changed)

    return at({base.words}, embedded)


def longer_packed(inputs: Inputs, count: int) -> tuple[Inputs, Positions]:
    """Packed inputs with `count` virtual tokens before each example; their attention is its own.

    There is room for as many examples a row as `starts` has, or for one a token.
    """
    require(inputs.get("perm_mask") is None, "virtual tokens in packed rows know no perm_mask")
    segments, starts = inputs["segment_ids"], inputs.get("starts")
    rows, length = segments.shape
    many = length if starts is None else starts.shape[1]
    tokens = moved_tokens(segments, count)
    first = jnp.diff(jax.lax.cummax(segments, axis=1), axis=1, prepend=0) > 0
    row, number = jnp.arange(rows)[:, None], jnp.arange(count)
    width = length + count * many
    ahead = jnp.where(first, tokens - count, width)[..., None] + number  # outside: dropped
    blank = jnp.zeros((rows, width), segments.dtype)
    virtual = (blank - 1).at[row[..., None], ahead].set(number, mode="drop")

    def grown(x: Array, there: Array | int) -> Array:
        spread = blank.astype(x.dtype).at[row, tokens].set(x)
        return jnp.where(virtual < 0, spread, there)

    own = blank.at[row[..., None], ahead].set(segments[..., None], mode="drop")
    fill = {"attention_mask": 1, "segment_ids": own, **BLANK}
    if inputs.get("position_ids") is not None:
        fill["position_ids"], inputs = virtual, later(inputs, count)
    longer = {n: grown(inputs[n], x) for n, x in fill.items() if inputs.get(n) is not None}
    if starts is not None:
        there = jnp.take_along_axis(tokens, starts, axis=1) - count
        longer["starts"] = jnp.maximum(there, 0)
    if inputs.get("at_positions") is not None:
        longer["at_positions"] = jnp.take_along_axis(tokens, inputs["at_positions"], axis=1)
    return inputs | longer, Positions(tokens, virtual)


def inserted(x: Array, vectors: Array, positions: Positions | None) -> Array:
    """Embedded rows (batch, longer, d) with vectors (k, d) for virtual tokens."""
    vectors = vectors.astype(x.dtype)
    if positions is None:
        front = jnp.broadcast_to(vectors, (len(x), *vectors.shape))
        return jnp.concatenate([front, x[:, len(vectors) :]], 1)
    virtual = positions.virtual
    return jnp.where(virtual[..., None] < 0, x, jnp.take(vectors, jnp.maximum(virtual, 0), axis=0))


def removed(
    module: nn.Module, base: Base, out: Any, count: int, positions: Positions | None
) -> Any:
    """A model's outputs without those of virtual tokens."""
    if module.head not in (EACH_TOKEN_READ if base.two_sided else EACH_TOKEN):
        return out
    if module.is_mutable_collection("cache") and not module.is_initializing():
        return out  # of the last column alone
    if hasattr(out, "tokens"):  # scores of targets, and no logits
        return out._replace(tokens=removed_of(out.tokens, count, positions))
    if module.head == "pretraining":
        words, follows = out
        return (removed_of(words, count, positions), follows)
    return removed_of(out, count, positions)


def removed_of(out: Array, count: int, positions: Positions | None) -> Array:
    """(batch, longer, features) → (batch, length, features)."""
    if positions is None:
        return out[:, count:]
    return jnp.take_along_axis(out, positions.tokens[..., None], axis=1)


def grown_call(
    base: Base,
    count: int,
    make: Callable[[nn.Module], Array],
    vectors: Relay[tuple[Array, Positions | None]],
) -> Callable[..., Any]:
    """A wrap of a model's call, see `ftjax.methods.interception.at`, that gives it virtual tokens.

    Args:
        base: what is known of the model.
        count: of virtual tokens.
        make: gives their vectors (count, d), within the model.
        vectors: takes what `inserted` then needs, when words are first looked up.
    """

    def wrap(module: nn.Module, call: Callable, input_ids: Array | None = None, **inputs: Any):
        inputs |= {"input_ids": input_ids}
        if inputs.get("features") is not None:
            return call(**inputs)
        if inputs.get("column") is not None:
            return call(**next_token(base, inputs, count))
        written = {}
        if base.two_sided:  # what the decoder reads and writes does not grow
            written = {name: inputs.pop(name, None) for name in ("targets", "target_weights")}
            if inputs.get("decoder_input_ids") is None:
                read = (input_ids, inputs.get("attention_mask"))
                read = read if written["targets"] is None else tuple(written.values())
                inputs["decoder_input_ids"] = module.decoder_inputs(*read)
        positions = None
        if inputs.get("segment_ids") is not None:
            inputs, positions = longer_packed(inputs, count)
        else:
            inputs = longer(inputs, count)
        vectors.value = make(module), positions
        out = call(**inputs, **written)
        if inputs.get("at_positions") is not None:  # at which alone the outputs are
            return out
        return removed(module, base, out, count, positions)

    return wrap
