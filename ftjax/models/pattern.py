"""Which keys the queries of whole rows see, as kernels take it: not as a mask."""

import jax
from flax import struct

Array = jax.Array


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
    """That of rows with an attention mask or segments (batch, keys), as `encoder_mask` reads them.

    Args:
        attention_mask, segment_ids, windows, causal: see `Pattern`.
        masked: see `Pattern`; padding comes after tokens otherwise.
    """
    segments = segment_ids
    if segment_ids is None and attention_mask is not None:
        segments = attention_mask > 0
    return Pattern(segments, 0, windows, segment_ids is not None, causal=causal, masked=masked)
