"""Causal attention by the splash kernel of JAX for TPUs: no scores are kept, blocks are skipped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from ftjax.errors import UserError
from ftjax.models.masks import Pattern
from ftjax.parallel.mesh import RULES

Array = jax.Array
LANES = 128  # to a multiple of which lengths are padded
CONTEXT = "context"  # of what the kernel gives, for `jax.checkpoint`


@dataclass(frozen=True)
class Blocks:
    """How scores are computed.

    Attributes:
        size: of blocks of queries and of keys, at most.
        fused: the gradients of queries are computed with those of keys and values, once, and sums
            of them in the compute dtype; else scores are computed once more for them.
    """

    size: int = 512
    fused: bool = False


BLOCKS = Blocks()


def attend(
    query: Array,
    key: Array,
    value: Array,
    pattern: Pattern,
    scale: float,
    softcap: float | None,
    blocks: Blocks = BLOCKS,
) -> Array:
    """softmax(scale · q kᵀ, masked) v, over the mesh: rows by batch, heads by tensor.

    Over the axis sequence positions are exchanged for heads, where there are enough; else each
    device has its queries and gathers all keys.

    Args:
        query: (batch, length, heads, d).
        key, value: (batch, prefix + length, heads or a divisor of it, d).
        pattern: which keys a query sees.
        scale: of scores.
        softcap: c in c · tanh(scores / c); None for none.
        blocks: of scores.
    """
    if pattern.prefix and (pattern.packed or pattern.windows != (None,)):
        raise UserError(
            "model.attention=splash has no prefixes for packed rows or sliding windows; "
            "use attention=xla"
        )
    length = query.shape[1]
    query = _padded((query * scale).swapaxes(1, 2), 2)
    key, value = (_padded(x.swapaxes(1, 2), 2) for x in (key, value))
    segment_ids = _segment_ids(pattern, query.shape[2], key.shape[2])
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else mesh.shape["sequence"]
    parts = parts if query.shape[2] % (parts * LANES) == 0 else 1
    copies = None if pattern.prefix or parts == 1 else copies_of(key.shape[1], query.shape[1], mesh)
    exchanged = copies is not None
    heads, keys = query.shape[1], key.shape[2]
    shards = (1 if mesh.empty else mesh.shape["tensor"]), parts
    shards = (math.prod(shards), 1) if exchanged else shards
    kernels = [
        _kernel(window, heads, query.shape[2], keys, pattern, softcap, shards, blocks)
        for window in pattern.windows
    ]
    run = _local
    if not mesh.empty:
        batch, length_axis = RULES["batch"], RULES["length"] if parts > 1 else None
        query_spec = PartitionSpec(batch, "tensor", length_axis)
        key_spec = query_spec if exchanged else PartitionSpec(batch, "tensor")
        query_ids = PartitionSpec(batch, None if exchanged else length_axis)
        ids = (query_ids, PartitionSpec(batch)) if segment_ids else None
        mask_spec = (("tensor", length_axis), None) if exchanged else ("tensor", length_axis)
        sharding = NamedSharding(mesh, PartitionSpec(*mask_spec))
        specs = [kernel.manual_sharding_spec(sharding) for kernel in kernels]
        run = jax.shard_map(
            partial(_exchanged, copies=copies) if exchanged else run,
            in_specs=(specs, query_spec, key_spec, key_spec, PartitionSpec(), ids),
            out_specs=query_spec,
            check_vma=False,
        )
    context = run(kernels, query, key, value, jnp.asarray(pattern.kind), segment_ids)
    return context[:, :, :length].swapaxes(1, 2)


def copies_of(key_heads: int, heads: int, mesh: AbstractMesh) -> int | None:
    """How many devices share a head of keys where heads are spread over the axis sequence.

    Args:
        key_heads: of keys and values.
        heads: of queries.
        mesh: whose axis tensor divides both.

    Returns:
        None where heads cannot be spread: keys are gathered instead.
    """
    parts, tensor = mesh.shape["sequence"], mesh.shape["tensor"]
    copies = math.lcm(key_heads // tensor, parts) // (key_heads // tensor)
    return copies if heads % (key_heads * copies) == 0 else None


def kernel_flops(name: str, inputs: Sequence[tuple[str, tuple[int, ...]]]) -> float:
    """FLOPs of one run of a kernel of this attention, every position before a token seen.

    Args:
        name: of the kernel, as the compiled program has it, ending in "_fused" where one gives
            all gradients.
        inputs: dtype and shape of what it reads: query (..., heads, length, d) and key come first
            of what has d features.
    """
    products = {"fwd": 2, "dq": 3, "dkv": 4}
    kind = next((kind for kind in products if f"_{kind}_" in name), None)
    products["dkv"] += name.endswith("_fused")
    if not name.startswith("splash") or kind is None:
        return 0.0
    (*rows, queries, size), (*_, keys, _) = [
        shape for dtype, shape in inputs if dtype in ("bf16", "f32") and len(shape) > 2
    ][:2]
    pairs = queries * (keys - queries) + queries * (queries + 1) / 2
    return 2.0 * products[kind] * math.prod(rows) * pairs * size


def _padded(x: Array, axis: int, value: int = 0) -> Array:
    """Lengthened at the end to a multiple of the lanes."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % LANES)
    return jnp.pad(x, widths, constant_values=value)


def _segment_ids(pattern: Pattern, queries: int, keys: int) -> tuple[Array, Array] | None:
    """Segments of queries and keys (batch, length); a prefix is of the real tokens' segment."""
    if pattern.segments is None:
        return None
    query_segments = pattern.segments.astype(jnp.int32)
    key_segments = jnp.pad(query_segments, ((0, 0), (pattern.prefix, 0)), constant_values=1)
    return _padded(query_segments, 1, -1), _padded(key_segments, 1, -1)


def _kernel(
    window: int | None,
    heads: int,
    queries: int,
    keys: int,
    pattern: Pattern,
    softcap: float | None,
    shards: tuple[int, int],
    blocks: Blocks,
) -> Any:
    """The kernel of a kind of layer, for heads and queries in so many shards."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    q, k = (_block(size, blocks.size) for size in (queries // shards[1], keys))
    sides = splash.BlockSizes(
        block_q=q,
        block_kv=k,
        block_kv_compute=k,
        block_q_dkv=q,
        block_kv_dkv=k,
        block_kv_dkv_compute=k,
        block_q_dq=None if blocks.fused else q,
        block_kv_dq=None if blocks.fused else k,
        use_fused_bwd_kernel=blocks.fused,
    )
    if window is None:
        mask = splash.CausalMask((queries, keys), offset=pattern.prefix)
    else:
        mask = splash.LocalMask((queries, keys), (window - 1, 0), offset=pattern.prefix)
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        block_sizes=sides,
        head_shards=shards[0],
        q_seq_shards=shards[1],
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=CONTEXT,
    )


def _block(length: int, most: int) -> int:
    """The largest multiple of the lanes up to `most` that divides a length."""
    return next(n for n in range(most // LANES * LANES, 0, -LANES) if length % n == 0)


def _local(
    kernels: Sequence[Any],
    query: Array,
    key: Array,
    value: Array,
    kind: Array,
    segment_ids: tuple[Array, Array] | None,
) -> Array:
    """What one device computes of it: (batch, heads, length, d) in and out."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    def run(kernel: Any, query: Array, key: Array, value: Array, segment_ids: Any) -> Array:
        return jax.vmap(kernel)(query, key, value, segment_ids and splash.SegmentIds(*segment_ids))

    if len(kernels) == 1:
        return run(kernels[0], query, key, value, segment_ids)
    branches = [partial(run, kernel) for kernel in kernels]
    return jax.lax.switch(kind, branches, query, key, value, segment_ids)


def _exchanged(
    kernels: Sequence[Any],
    query: Array,
    key: Array,
    value: Array,
    kind: Array,
    segment_ids: tuple[Array, Array] | None,
    copies: int,
) -> Array:
    """`_local` of all positions and some heads, exchanged for some positions of all heads and back.

    By two all-to-alls over the axis sequence (Jacobs et al. 2023, §3): each device sends what it
    has once, where gathered keys would come to it from all others, and of causal attention all
    devices compute equally much.
    """

    def exchange(x: Array) -> Array:
        return jax.lax.all_to_all(x, "sequence", split_axis=1, concat_axis=2, tiled=True)

    key, value = (jnp.repeat(x, copies, axis=1) for x in (key, value))
    query, key, value = (exchange(x) for x in (query, key, value))
    context = _local(kernels, query, key, value, kind, segment_ids)
    return jax.lax.all_to_all(context, "sequence", split_axis=2, concat_axis=1, tiled=True)
