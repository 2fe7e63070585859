"""What generation keeps of earlier tokens: keys and values in static shapes.

Tokens stand in columns, prompts padded on the left, so that a batch's rows go on from the same
column. A layer keeps a column's key and value in a slot; one with a sliding window has as many
slots as its window and takes them in turn.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.models.layers import encoder_mask
from ftjax.models.pattern import Pattern, pattern_of

Array = jax.Array


class View(NamedTuple):
    """What a layer's queries see, and where its keys and values are kept.

    Attributes:
        mask: boolean, to (batch, heads, queries, keys); None for all.
        slots: None where nothing is kept; (slots,) the column that each slot takes of a prompt's
            keys; () the slot that one more token's key takes.
        pattern: the mask of whole rows, as kernels take it; None for queries that are not.
    """

    mask: Array | None = None
    slots: Array | None = None
    pattern: Pattern | None = None


class Cache(nn.Module):
    """Keys and values (batch, columns, heads, d) in, those to attend to out.

    Kept in the collection "cache" as (batch, heads, slots, d), the order attention reads them in.
    """

    @nn.compact
    def __call__(
        self, key: Array | None, value: Array | None, slots: Array | None
    ) -> tuple[Array, Array]:
        """As `View` says by `slots`; None for key and value: what was kept, and nothing new."""
        if slots is None:
            return key, value
        found = []
        for name, new in (("key", key), ("value", value)):
            if slots.ndim and new is not None:
                self.put_variable("cache", name, new[:, slots].swapaxes(1, 2))
                found.append(new)
                continue
            kept = self.get_variable("cache", name)
            if new is not None:
                new = new.swapaxes(1, 2).astype(kept.dtype)
                kept = jax.lax.dynamic_update_slice_in_dim(kept, new, slots, 2)
                self.put_variable("cache", name, kept)
            found.append(kept.swapaxes(1, 2))
        return tuple(found)


def rows_view(
    attention_mask: Array | None,
    segment_ids: Array | None = None,
    perm_mask: Array | None = None,
) -> View:
    """Attention of whole rows to whole rows, both ways; arguments as `encoder_mask` has them."""
    masked = perm_mask is not None
    return View(
        encoder_mask(attention_mask, segment_ids, perm_mask),
        pattern=pattern_of(attention_mask, segment_ids, causal=False, masked=masked),
    )


def causal_mask(
    length: int,
    attention_mask: Array | None,
    segment_ids: Array | None,
    window: int | None,
) -> Array:
    """Which keys a query sees: (1 or batch, 1, length, length).

    A token sees itself and what is before it, at most `window` - 1 positions back, of its own
    segment, and no padding.
    """
    place = jnp.arange(length)
    back = place[:, None] - place
    mask = (back >= 0)[None, None]
    if window is not None:
        mask = mask & (back < window)
    seen = encoder_mask(attention_mask, segment_ids)
    return mask if seen is None else mask & seen


def two_sided_mask(
    length: int,
    attention_mask: Array | None,
    segment_ids: Array | None,
    window: int | None,
) -> Array:
    """As `causal_mask`, but a token sees what is after it, too, and as far."""
    place = jnp.arange(length)
    distance = jnp.abs(place[:, None] - place)
    mask = (distance < (length if window is None else window))[None, None]
    seen = encoder_mask(attention_mask, segment_ids)
    return mask if seen is None else mask & seen


def prompt_view(
    length: int,
    attention_mask: Array | None,
    segment_ids: Array | None = None,
    window: int | None = None,
    keep: bool = False,
    ring: bool = True,
) -> View:
    """Causal self-attention over whole rows.

    Args:
        length: of the rows.
        attention_mask: (batch, length), or where keys are kept (batch, columns), with room for
            what is generated.
        segment_ids: (batch, length), of packed examples.
        window: how many columns back a token sees, itself included.
        keep: whether generation goes on from here.
        ring: keep only as many keys as the window has columns.
    """
    seen = None if attention_mask is None else attention_mask[:, :length]
    mask = causal_mask(length, seen, segment_ids, window)
    pattern = pattern_of(seen, segment_ids, (window,), masked=keep)  # prompts are padded in front
    if not keep:
        return View(mask, pattern=pattern)
    size = _slots(attention_mask.shape[1], window, ring)
    return View(mask, jnp.maximum(held(length - 1, size), 0), pattern)


def token_view(
    column: Array, attention_mask: Array, window: int | None = None, ring: bool = True
) -> View:
    """One more token in `column` over what is kept; arguments as `prompt_view` had them."""
    size = _slots(attention_mask.shape[1], window, ring)
    columns = held(column, size)
    seen = (columns >= 0) & (attention_mask[:, jnp.maximum(columns, 0)] > 0)
    if window is not None:
        seen = seen & (columns > column - window)
    return View(seen[:, None, None, :], column % size)


def held(column: int | Array, size: int) -> Array:
    """The column whose key each of `size` slots holds after `column`; negative for none."""
    return column - (column - jnp.arange(size)) % size


def _slots(columns: int, window: int | None, ring: bool) -> int:
    return min(columns, window) if ring and window is not None else columns
