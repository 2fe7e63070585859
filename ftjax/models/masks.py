"""Which keys the queries of a layer see: as a mask, and as a pattern that kernels take instead.

Tokens that are generated stand in columns, prompts padded on the left, so that a batch's rows go
on from the same column. A layer keeps a column's key in a slot; one with a sliding window has as
many slots as its window and takes them in turn.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from ftjax.errors import require

Array = jax.Array
ONE_BY_ONE = "a model with a sliding window keeps too few keys to read several tokens at once"


@struct.dataclass
class Pattern:
    """What a mask says of all queries of a row, in words that need no (queries, keys).

    Attributes:
        segments: (batch, keys), tokens see those of their own number, 0 is padding; None where
            all may. A prefix is not in it.
        kind: of the layer, in `windows`.
        windows: how many positions back a token sees, itself included; where it sees both ways,
            how many to either side, itself not; None for all.
        packed: rows hold several examples.
        prefix: keys before the tokens' own that every query sees.
        causal: a token sees none after itself.
        masked: more than this is ruled out, or padding may come before tokens.
    """

    segments: Array | None = None
    kind: int | Array = 0
    windows: tuple[int | None, ...] = struct.field(pytree_node=False, default=(None,))
    packed: bool = struct.field(pytree_node=False, default=False)
    prefix: int = struct.field(pytree_node=False, default=0)
    causal: bool = struct.field(pytree_node=False, default=True)
    masked: bool = struct.field(pytree_node=False, default=False)

    def of(self, kind: int | Array) -> "Pattern":
        """That of a kind of layer; a number that is known chooses the window at once."""
        if isinstance(kind, int):
            return self.replace(windows=self.windows[kind : kind + 1])
        return self.replace(kind=kind)

    def after(self, prefix: int) -> "Pattern":
        """With `prefix` more keys in front."""
        return self.replace(prefix=self.prefix + prefix)


def pattern_of(
    attention_mask: Array | None,
    segment_ids: Array | None = None,
    windows: tuple[int | None, ...] = (None,),
    causal: bool = True,
    masked: bool = False,
) -> Pattern:
    """That of rows with an attention mask or segments (batch, keys), as `rows_mask` reads them.

    Args:
        attention_mask, segment_ids, windows, causal: see `Pattern`.
        masked: see `Pattern`; padding comes after tokens otherwise.
    """
    segments = segment_ids
    if segment_ids is None and attention_mask is not None:
        segments = attention_mask > 0
    return Pattern(segments, 0, windows, segment_ids is not None, causal=causal, masked=masked)


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


def rows_mask(
    attention_mask: Array | None, segment_ids: Array | None, perm_mask: Array | None = None
) -> Array | None:
    """Which keys a query sees, (batch, 1, q or 1, k), from either kind of mask.

    Args:
        attention_mask: (batch, length), nonzero at real tokens.
        segment_ids: (batch, length), the number of the packed example each token belongs to,
            zero at padding; tokens see their own example only. Takes precedence.
        perm_mask: (batch, q, k), nonzero where a query must not see a key besides.
    """
    mask = None
    if segment_ids is not None:
        same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
        mask = same & (segment_ids[:, None, None, :] > 0)
    elif attention_mask is not None:
        mask = (attention_mask > 0)[:, None, None, :]
    if perm_mask is not None:
        permitted = (perm_mask == 0)[:, None]
        mask = permitted if mask is None else mask & permitted
    return mask


def rows_view(
    attention_mask: Array | None,
    segment_ids: Array | None = None,
    perm_mask: Array | None = None,
) -> View:
    """Attention of whole rows to whole rows, both ways; arguments as `rows_mask` has them."""
    masked = perm_mask is not None
    return View(
        rows_mask(attention_mask, segment_ids, perm_mask),
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
    positions = jnp.arange(length)
    distance = positions[:, None] - positions
    mask = (distance >= 0)[None, None]
    if window is not None:
        mask = mask & (distance < window)
    permitted = rows_mask(attention_mask, segment_ids)
    return mask if permitted is None else mask & permitted


def near_views(view: View, length: int, windows: tuple[int | None, ...]) -> tuple[View, ...]:
    """What each kind of layer sees of a `view` to both sides.

    Args:
        view: of whole rows.
        length: of the rows.
        windows: by kind, how many positions to either side; None for all.
    """
    positions = jnp.arange(length)
    distance = jnp.abs(positions[:, None] - positions)

    def mask_of(window: int | None) -> Array:
        in_window = (distance <= (length if window is None else window))[None, None]
        return in_window if view.mask is None else view.mask & in_window

    pattern = view.pattern.replace(windows=windows)
    return tuple(View(mask_of(window), pattern=pattern) for window in windows)


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
    prompt_mask = None if attention_mask is None else attention_mask[:, :length]
    mask = causal_mask(length, prompt_mask, segment_ids, window)
    # Prompts are padded in front.
    pattern = pattern_of(prompt_mask, segment_ids, (window,), masked=keep)
    if not keep:
        return View(mask, pattern=pattern)
    size = _slots(attention_mask.shape[1], window, ring)
    return View(mask, jnp.maximum(slot_columns(length - 1, size), 0), pattern)


def token_view(
    column: Array,
    attention_mask: Array,
    window: int | None = None,
    ring: bool = True,
    count: int = 1,
) -> View:
    """`count` more tokens from `column` on over what is kept; others as `prompt_view` had them.

    Raises:
        UserError: several tokens, of which the last would take the slots of keys that the first
            ones see.
    """
    size = _slots(attention_mask.shape[1], window, ring)
    require(count == 1 or size == attention_mask.shape[1], ONE_BY_ONE)
    columns, queries = slot_columns(column + count - 1, size), column + jnp.arange(count)[:, None]
    visible = (columns >= 0) & (columns <= queries)
    if window is not None:
        visible = visible & (columns > queries - window)
    mask = visible & (attention_mask[:, None, jnp.maximum(columns, 0)] > 0)
    return View(mask[:, None], column % size)


def slot_columns(column: int | Array, size: int) -> Array:
    """The column whose key each of `size` slots holds after `column`; negative for none."""
    return column - (column - jnp.arange(size)) % size


def _slots(columns: int, window: int | None, ring: bool) -> int:
    return min(columns, window) if ring and window is not None else columns


def pick(by_kind: Any, kind: Any) -> Any:
    """What a kind of layer has of `by_kind`, a tuple; None where that is empty."""
    if not by_kind:
        return None
    if len(by_kind) == 1:
        return by_kind[0]
    if isinstance(kind, int):
        return by_kind[kind]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves)[kind], *by_kind)


def view_of(views: tuple[View, ...], kind: Any) -> View:
    """What layers of a kind see."""
    view = pick(views, kind)
    return view._replace(pattern=view.pattern and view.pattern.of(kind))
