"""Rotary position embeddings (Su et al. 2021), with the scalings of published models."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import UserError
from ftjax.parallel.platform import PLATFORM

Array = jax.Array
KEYS = "rope_parameters rope_scaling rope_theta"  # of config.json, that `from_hf` reads


@dataclass(frozen=True)
class Rotary:
    """Frequencies of one kind of layer.

    Attributes:
        theta: base of the geometric series of wavelengths.
        size: how many of a head's features are rotated.
        scaling: "default", "linear" (positions divided by `factor`, Chen et al. 2023) or "llama3"
            (long wavelengths divided, short ones kept).
        factor, low, high, original: of the scaling; `original` is the context trained on.
    """

    theta: float
    size: int
    scaling: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original: int = 0

    def frequencies(self) -> np.ndarray:
        """Radians a position: float32 (size / 2,)."""
        powers = np.arange(0, self.size, 2, dtype=np.float32) / self.size
        frequency = (1.0 / self.theta**powers).astype(np.float32)
        if self.scaling == "linear":
            return frequency / self.factor
        if self.scaling == "llama3":
            wavelength = 2 * math.pi / frequency
            share = (self.original / wavelength - self.low) / (self.high - self.low)
            share = np.clip(share, 0.0, 1.0)  # 0: long, divided; 1: short, kept
            return ((1 - share) * frequency / self.factor + share * frequency).astype(np.float32)
        return frequency

    def table(self, positions: Array) -> tuple[Array, Array]:
        """Cosines and sines for positions (batch or 1, length): (…, length, 1, size)."""
        angle = positions[..., None].astype(jnp.float32) * self.frequencies()
        angle = jnp.concatenate([angle, angle], -1)[:, :, None]
        return jnp.cos(angle), jnp.sin(angle)


def laid_out(*heads: Array) -> tuple[Array, ...]:
    """Heads as projections give them, before what follows makes them float32.

    TPUs lay heads out anew for attention: like this before, and not after, when they are twice as
    large.
    """
    return jax.lax.optimization_barrier(heads) if PLATFORM.value == "tpu" else heads


WIDEST = 512  # features that are exchanged by a product


def rotate(x: Array, table: tuple[Array, Array]) -> Array:
    """Rotates the first features of x (batch, length, heads, d), halves paired as GPT-NeoX's."""
    cos, sin = table
    size = cos.shape[-1]
    head, unrotated = x[..., :size], x[..., size:]
    by_product = {"tpu": _turned_by_product} if size <= WIDEST else {}
    turned = jax.lax.platform_dependent(head, default=_turned, **by_product)
    rotated = head.astype(jnp.float32) * cos + turned * sin
    return jnp.concatenate([rotated.astype(x.dtype), unrotated], -1)


def _turned(x: Array) -> Array:
    """(first half, second) → (-second, first), in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([-second, first], -1)


def _turned_by_product(x: Array) -> Array:
    """The same, exactly: halves of TPUs' lanes are exchanged sooner by a product than by slices."""
    half = x.shape[-1] // 2
    turn = np.kron([[0, 1], [-1, 0]], np.eye(half))
    precision = None if x.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    turn = jnp.asarray(turn, x.dtype)
    return jnp.einsum(
        "...d,de->...e", x, turn, precision=precision, preferred_element_type="float32"
    )


def from_hf(
    hf: Mapping[str, Any], size: int, family: str, theta: float = 10_000.0, partial: bool = False
) -> Rotary:
    """What all layers have, by `rope_parameters`, or the older `rope_theta` and `rope_scaling`.

    Args:
        hf: config.json's mapping.
        size: of a head.
        family: for messages.
        theta: where the configuration gives none.
        partial: the family heeds `partial_rotary_factor`.

    Raises:
        UserError: a scaling that is not implemented.
    """
    settings = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    settings = {"rope_theta": hf.get("rope_theta", theta), **settings}
    share = settings.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
    rotated_size = int(size * share) if partial and share else size
    return _read(settings, rotated_size, hf["max_position_embeddings"], family)


def of_kind(
    hf: Mapping[str, Any],
    kind: str,
    size: int,
    family: str,
    theta: float,
    scaling: Mapping[str, Any] | None,
) -> Rotary:
    """What layers of a kind have, in families whose `rope_parameters` are by kind alone.

    Args:
        hf, size, family: see `from_hf`.
        kind: as `layer_types` has it.
        theta: where `rope_parameters` give none.
        scaling: `rope_scaling`, where it is of this kind.
    """
    settings = (hf.get("rope_parameters") or {}).get(kind) or {}
    settings = {"rope_theta": theta, **settings, **(scaling or {})}
    return _read(settings, size, hf["max_position_embeddings"], family)


def _read(settings: Mapping[str, Any], size: int, longest: int, family: str) -> Rotary:
    scaling = settings.get("rope_type", settings.get("type", "default")) or "default"
    if scaling not in ("default", "linear", "llama3"):
        raise UserError(f"{family}: rope_type={scaling!r} is not implemented")
    if size < 2 or size % 2:
        raise UserError(f"{family}: {size} features of a head cannot be rotated in pairs")
    low, high = settings.get("low_freq_factor", 1.0), settings.get("high_freq_factor", 4.0)
    if scaling == "llama3" and not low < high:
        raise UserError(f"{family}: low_freq_factor={low} is not below high_freq_factor={high}")
    return Rotary(
        theta=settings["rope_theta"],
        size=size,
        scaling=scaling,
        factor=settings.get("factor", 1.0),
        low=low,
        high=high,
        original=settings.get("original_max_position_embeddings", longest),
    )
