"""Which tokens make up each example: of rows padded anywhere, packed, or read one by one."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ftjax.base_model import Base

Array = jax.Array
ENDS = {"first": 1, "last": 2}


def side_of(base: Base, path: str) -> str:
    """ "decoder" for what is in an encoder-decoder's decoder, else "rows"."""
    return "decoder" if base.two_sided and path.startswith("decoder/") else "rows"


def segments_of(base: Base, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """By side, the number of each token's example from 1, zero at padding: (1 or batch, length).

    A decoder that is given nothing reads the encoder's row a place further on, and has its
    padding.

    Args:
        base: the model.
        inputs: what it is called with.
    """

    def real(ids: Array, mask: Array | None) -> Array:
        length = ids.shape[-1]
        if mask is None:
            return jnp.ones((1, length), jnp.int32)
        return (mask.reshape(-1, mask.shape[-1])[:, :length] > 0).astype(jnp.int32)

    segments = inputs.get("segment_ids")
    if segments is None:
        segments = real(inputs["input_ids"], inputs.get("attention_mask"))
    by_side = {"rows": segments}
    if base.two_sided:
        targets = inputs.get("decoder_input_ids")
        mask = inputs.get("decoder_attention_mask")
        by_side["decoder"] = segments if targets is None else real(targets, mask)
    return by_side


def ranks(segments: Array) -> tuple[Array, Array]:
    """How many tokens of its example are before and after each token; of padding, anything.

    Args:
        segments: (batch, length), rising from 1 within a row, zero at padding.
    """

    def before(segments: Array) -> Array:
        real, highest = segments > 0, jax.lax.cummax(segments, axis=1)
        new = real & (segments > jnp.pad(highest, ((0, 0), (1, 0)))[:, :-1])
        count = jnp.cumsum(real, axis=1)
        return count - jax.lax.cummax(jnp.where(new, count, 0), axis=1)

    mirrored = jnp.where(segments > 0, segments.max() + 1 - segments, 0)
    return before(segments), before(mirrored[:, ::-1])[:, ::-1]


def ends_of(base: Base, inputs: Mapping[str, Any], first: int, last: int) -> dict[str, Array]:
    """By side, of `ENDS` at each example's first and last tokens, else 0: (1 or batch, length).

    A token that is both is among the last. One more token in a `column` counts from where its
    row's real ones begin, and is never among the last.
    """
    column = inputs.get("column")
    if inputs.get("features") is not None:
        return {}
    if column is not None:
        mask = inputs["decoder_attention_mask" if base.two_sided else "attention_mask"]
        start = jnp.argmax(mask > 0, axis=1)[:, None]
        end = jnp.where(column - start < first, ENDS["first"], 0)
        return {"decoder" if base.two_sided else "rows": end}

    def marks(segments: Array) -> Array:
        before, after = ranks(segments)
        end = jnp.where(before < first, ENDS["first"], 0)
        return jnp.where(segments > 0, jnp.where(after < last, ENDS["last"], end), 0)

    return {side: marks(segments) for side, segments in segments_of(base, inputs).items()}


def at_firsts(x: Array, starts: Array | None, length: int) -> Array:
    """x (batch, all, ...) at the positions of outputs (batch, length, ...).

    A last layer may compute only the first tokens of examples, at `starts` (batch, length) in
    packed rows.
    """
    if x.shape[1] == length:
        return x
    return x[:, :1] if starts is None else jnp.take_along_axis(x, starts, axis=1)
