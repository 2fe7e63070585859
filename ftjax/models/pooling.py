"""What stands for each example of a row: its first or its last token, or a mean over its tokens."""

import jax
import jax.numpy as jnp

Array = jax.Array


def at_starts(x: Array, starts: Array | None) -> Array:
    """What stands where examples start: (batch, examples, ...) of x (batch, length, ...).

    Args:
        x: anything with a row a position.
        starts: (batch, examples), the position of each packed example's first token; None where
            a row is one example.
    """
    if starts is None:
        return x[:, :1]
    return jnp.take_along_axis(x, starts.reshape(*starts.shape, *(1,) * (x.ndim - 2)), axis=1)


def last_tokens(
    shape: tuple[int, int],
    attention_mask: Array | None,
    segment_ids: Array | None,
    starts: Array | None,
) -> Array:
    """Position of each example's last token: (batch, 1 or examples)."""
    positions = jnp.arange(shape[1])
    if starts is not None:
        number = 1 + jnp.arange(starts.shape[1])
        inside = segment_ids[:, None, :] == number[:, None]
        return jnp.where(inside, positions, 0).max(-1)
    if attention_mask is None:
        return jnp.full((shape[0], 1), shape[1] - 1)
    return jnp.where(attention_mask > 0, positions, 0).max(-1, keepdims=True)


def entity_pool(
    hidden: Array, entities: Array, segment_ids: Array | None, starts: Array | None
) -> Array:
    """Of each example the means over its first and its second entity, and its first token.

    After R-BERT (Wu and He 2019), without its layers between; 0 for an entity that is cut off.

    Args:
        hidden: (batch, length, features).
        entities: (batch, length), 1 and 2 at tokens of the two.
        segment_ids, starts: of packed rows, as of `mean_pool`.

    Returns:
        (batch, 1 or examples, 3 features).
    """
    first = at_starts(hidden, starts)
    in_example = jnp.ones((1, 1, 1), bool)
    if starts is not None:
        in_example = segment_ids[:, None, :] == 1 + jnp.arange(starts.shape[1])[:, None]

    def mean(number: int) -> Array:
        weight = (in_example & (entities[:, None, :] == number)).astype(hidden.dtype)
        return (weight @ hidden) / jnp.maximum(weight.sum(-1, keepdims=True), 1)

    return jnp.concatenate([mean(1), mean(2), first], -1)


def mean_pool(
    hidden: Array, attention_mask: Array | None, segment_ids: Array | None, starts: Array | None
) -> Array:
    """The mean over each example's real tokens, as sentence-transformers takes it.

    Args:
        hidden: (batch, length, features).
        attention_mask: (batch, length), where a row is one example.
        segment_ids: (batch, length), for packed examples numbered from 1 in each row.
        starts: (batch, examples), for packed examples.

    Returns:
        (batch, 1 or examples, features).
    """
    if starts is not None:
        number = 1 + jnp.arange(starts.shape[1])
        weight = (segment_ids[:, None, :] == number[:, None]).astype(hidden.dtype)
    elif attention_mask is not None:
        weight = (attention_mask > 0).astype(hidden.dtype)[:, None, :]
    else:
        return hidden.mean(1, keepdims=True)
    return (weight @ hidden) / jnp.maximum(weight.sum(-1, keepdims=True), 1)
