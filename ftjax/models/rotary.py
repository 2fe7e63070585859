"""Rotary position embeddings (Su et al. 2021), with the scalings of published models."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.errors import UserError

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
    original: int = 8192

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


def rotate(x: Array, table: tuple[Array, Array]) -> Array:
    """Rotates the first features of x (batch, length, heads, d), halves paired as GPT-NeoX's."""
    cos, sin = table
    size = cos.shape[-1]
    turned, rest = x[..., :size].astype(jnp.float32), x[..., size:]
    first, second = jnp.split(turned, 2, -1)
    turned = turned * cos + jnp.concatenate([-second, first], -1) * sin
    return jnp.concatenate([turned.astype(x.dtype), rest], -1)


def from_hf(
    hf: Mapping[str, Any],
    size: int,
    family: str,
    kind: str | None = None,
    theta: float = 10_000.0,
    partly: bool = False,
) -> Rotary:
    """Reads `rope_parameters`, or the older `rope_theta` and `rope_scaling`, of config.json.

    Args:
        hf: config.json's mapping.
        size: of a head.
        family: for messages.
        kind: of layer, where each has its own parameters.
        theta: where the configuration gives none.
        partly: the family heeds `partial_rotary_factor`.

    Raises:
        UserError: a scaling that is not implemented.
    """
    given = hf.get("rope_parameters") or {}
    given = given.get(kind, {}) if kind in given else given
    if not given:
        scaling = hf.get("rope_scaling") if kind != "sliding_attention" else None
        given = {"rope_theta": hf.get("rope_theta", theta), **(scaling or {})}
    scaling = given.get("rope_type", given.get("type", "default")) or "default"
    if scaling not in ("default", "linear", "llama3"):
        raise UserError(f"{family}: rope_type={scaling!r} is not implemented")
    partial = given.get("partial_rotary_factor", hf.get("partial_rotary_factor", 1.0))
    return Rotary(
        theta=given.get("rope_theta", hf.get("rope_theta", theta)),
        size=int(size * partial) if partly and partial else size,
        scaling=scaling,
        factor=given.get("factor", 1.0),
        low=given.get("low_freq_factor", 1.0),
        high=given.get("high_freq_factor", 4.0),
        original=given.get("original_max_position_embeddings", 8192),
    )
