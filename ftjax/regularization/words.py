"""The words of each example, and noise on their embeddings."""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

Array = jax.Array
Batch = Mapping[str, Array]


def key_of(name: str, key: Array) -> Array:
    """The key of a technique's own draws, of the key that a pass has for dropout."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def members(batch: Batch) -> Array:
    """1 where a token is of an example: float32 (rows, places, length), one place unless packed."""
    if "segment_ids" in batch:
        number = 1 + jnp.arange(batch["starts"].shape[1])
        return (batch["segment_ids"][:, None] == number[:, None]).astype(jnp.float32)
    mask = batch.get("attention_mask", jnp.ones_like(batch["input_ids"]))
    return (mask > 0).astype(jnp.float32).reshape(-1, 1, mask.shape[-1])


def summed(values: Array, inside: Array) -> Array:
    """Σ of an example's values at each of its tokens, 0 elsewhere: (rows, length).

    Args:
        values: (rows, length).
        inside: what `members` gives.
    """
    sums = jnp.einsum("rpl,rl->rp", inside, values, precision="highest")
    return jnp.einsum("rpl,rp->rl", inside, sums, precision="highest")


def noise(key: Array, batch: Batch, size: int, scale: float) -> Array:
    """s / √(L d) · U(−1, 1) for the words of an example of L; 0 for padding: (rows, length, d).

    NEFTune (Jain et al. 2023, alg. 1), s its α; and where FreeLB begins (Zhu et al. 2020, alg. 1),
    s its ε. L is the real length, as in the authors' experiments with either; `transformers`
    takes the padded one.

    Args:
        size: d.
        scale: s.
    """
    inside = members(batch)
    length = summed(jnp.ones_like(inside[:, 0]), inside)
    scales = jnp.where(length > 0, scale / jnp.sqrt(jnp.maximum(length, 1) * size), 0)
    return scales[..., None] * jax.random.uniform(key, (*scales.shape, size), minval=-1, maxval=1)


def cutoff(key: Array, x: Array, share: float) -> Array:
    """Token cut-off (Shen et al. 2020): embedded words x (rows, length, d), random ones all zero.

    Each word is cut with probability `share`. Its position and token type are told as before, and
    it is still attended to.
    """
    uncut = jax.random.bernoulli(key, 1 - share, x.shape[:2])
    return jnp.where(uncut[..., None], x, 0)
