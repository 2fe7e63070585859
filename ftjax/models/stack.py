"""A stack of layers as segments: a segment longer than one layer is scanned."""

from collections.abc import Callable, Iterable
from itertools import accumulate, pairwise
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import UserError, nearest
from ftjax.models.layers import STATISTIC
from ftjax.models.splash import CONTEXT
from ftjax.parallel.platform import SCANNED
from ftjax.parallel.product import PRODUCT, WIDE

DEEP = 200  # layers that are compiled one by one where nothing is said


ANY = jax.checkpoint_policies.save_only_these_names


def _products(dots: Callable) -> Callable:
    """A policy for products of matrices, of those that are gathered for it too."""
    return jax.checkpoint_policies.save_from_both_policies(dots, ANY(PRODUCT, WIDE))


def _offloaded(*names: str) -> Callable:
    """A policy that keeps what is named in the memory of the machine that the chips are in."""
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )


POLICIES = {  # what the forward pass keeps for the backward pass, from most memory to least
    "none": None,  # everything, without nn.remat
    "dots": _products(jax.checkpoint_policies.dots_saveable),
    "dots_context": ANY(
        PRODUCT, WIDE, CONTEXT, STATISTIC
    ),  # products, and what attention's kernel gives
    "dots_no_batch": _products(jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    "narrow_context": ANY(PRODUCT, CONTEXT, STATISTIC),  # the same without the wide features
    "context": ANY(CONTEXT, STATISTIC),
    "offload": _offloaded(PRODUCT, CONTEXT),
    "full": jax.checkpoint_policies.nothing_saveable,
}
WIDE_KEPT = {"dots", "dots_context", "dots_no_batch"}  # which keep products of wide features


def keeps_wide(remat: str | tuple[str, ...]) -> bool:
    """Whether products of wide features are kept in all layers."""
    return {remat} <= WIDE_KEPT if isinstance(remat, str) else {*remat} <= WIDE_KEPT


class Stack(nn.Module):
    """Applies `sum(segments)` layers in order.

    A segment of one layer is named `layer_I`; a segment of layers A to B-1 is named `layers_A_B`
    and its parameters are stacked on a leading axis ("layers"), so that compile time does not
    grow with depth.

    Attributes:
        layer: makes one layer from (class, name=, last=), where `last` says that nothing but the
            stack's output reads it; the layer maps (x, *shared) to x.
        layer_class: the class given to `layer`, wrapped by `nn.remat` under a policy.
        segments: lengths of the segments.
        remat: a key of `POLICIES`, or one for each layer, the same within a segment.
        kinds: a number a layer, passed to it after x; None where there is none.
    """

    layer: Callable[..., nn.Module]
    layer_class: type[nn.Module]
    segments: tuple[int, ...]
    remat: str | tuple[str, ...] = "none"
    kinds: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *shared: jax.Array | None) -> jax.Array:
        start = 0
        for length in self.segments:
            scanned = length > 1
            cls, kinds = self.layer_class, self.kinds and self.kinds[start : start + length]
            static = (2,) if kinds and len(set(kinds)) == 1 else ()
            remat = self.remat if isinstance(self.remat, str) else self.remat[start]
            if remat != "none":
                cls = nn.remat(
                    cls,
                    policy=POLICIES[remat],
                    prevent_cse=not scanned,
                    static_argnums=static,
                )
            if scanned:

                def body(layer: nn.Module, x, kind, *shared, kinds=kinds):
                    return layer(x, *_kind(kinds, kind), *shared), None

                scan = nn.scan(
                    body,
                    variable_axes={"params": 0, "cache": 0},
                    split_rngs={"params": True, "dropout": True},
                    in_axes=(0, *(nn.broadcast for _ in shared)),
                    length=length,
                    metadata_params={nn.PARTITION_NAME: "layers"},
                )
                layer = self.layer(cls, name=f"layers_{start}_{start + length}", last=False)
                with SCANNED(True):
                    x, _ = scan(layer, x, jnp.asarray(kinds or (0,) * length), *shared)
            else:
                last = start + 1 == sum(self.segments)
                layer = self.layer(cls, name=f"layer_{start}", last=last)
                x = layer(x, *_kind(kinds, None), *shared)
            start += length
        return x


def _kind(kinds: tuple[int, ...] | None, scanned: jax.Array | None) -> tuple:
    """The argument that says a layer's kind: a Python number wherever all layers share it."""
    if kinds is None:
        return ()
    return (kinds[0],) if len(set(kinds)) == 1 else (scanned,)


def resolve_segments(
    setting: str | Iterable[int], layers: int, parameters: float, cuts: Iterable[int] = ()
) -> tuple[int, ...]:
    """Segment lengths for a stack.

    Args:
        setting: "auto" (unrolled below 1e9 parameters, scanned from there), "unrolled", "scan",
            or the lengths themselves.
        layers: depth of the stack.
        parameters: size of the model, for "auto".
        cuts: layer numbers at which a method needs a boundary.
    """
    if isinstance(setting, str):
        if setting == "auto":
            setting = "unrolled" if parameters < 1e9 else "scan"
        if setting not in ("unrolled", "scan"):
            choices = ("auto", "unrolled", "scan")
            raise UserError(f"model.segments={setting!r} is not known{nearest(setting, choices)}")
        lengths = [1] * layers if setting == "unrolled" else [layers]
    else:
        lengths = [int(n) for n in setting]
    if sum(lengths) != layers or min(lengths, default=0) < 1:
        raise UserError(f"model.segments={lengths} must be positive and sum to {layers} layers")
    ends = {sum(lengths[:i]) for i in range(len(lengths) + 1)} | {c for c in cuts if 0 < c < layers}
    boundaries = sorted(ends)
    return tuple(b - a for a, b in pairwise(boundaries))


def matching_segments(segments: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """Segments of a decoder of `layers` beside an encoder with `segments`.

    It is unrolled where the encoder is; else cut at the same layer numbers, and what is left
    over is one segment.
    """
    if max(segments) == 1:
        return (1,) * layers
    return resolve_segments("scan", layers, 0, accumulate(segments))


def parameters_of(config: Any) -> float:
    """Of the layers' projections, as if none shared theirs: near enough to choose segments by."""

    def value(name: str, default: int) -> int:
        return getattr(config, name, default)

    size, decoder_layers = config.hidden_size, value("num_decoder_layers", 0)
    heads = value("num_attention_heads", 1)
    width, kernels = heads * value("head_dim", 0) or size, 2 + config.gated
    attention = 2 * size * width * (1 + value("num_key_value_heads", heads) / heads)
    inner, experts = value("intermediate_size", 4 * size), max(1, value("experts", 0))
    encoder, decoder = (
        kernels * size * value(f"{side}_width", inner) * experts for side in ("encoder", "decoder")
    )
    encoder, decoder = attention + encoder, 2 * attention + decoder
    return config.num_hidden_layers * encoder + decoder_layers * decoder
