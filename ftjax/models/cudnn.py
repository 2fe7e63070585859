"""Attention by the fused kernels of cuDNN on GPUs: no scores are kept.

A mask is a bias to these kernels: a tensor of (queries, keys) for each row, whose gradient they
compute besides. Wherever a pattern can be said without, by causality, lengths of rows or windows,
that is what they are told. Packed rows, prompts padded on the left, windows to both sides and
windows after a prefix need the mask, which is still less than scores of every head.

What cuDNN does not take is known before it is called: by JAX's own checks, on shapes alone. Under
`nn.remat` and `nn.scan` those of the backward pass would come too late to choose anything else.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ftjax.models.masks import Pattern
from ftjax.parallel.mesh import RULES, ways_of

Array = jax.Array


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
    scale: float,
    pattern: Pattern,
) -> Array:
    """softmax(scale · q kᵀ + bias, masked) v, over the mesh: rows by batch, heads by tensor.

    Args:
        query, key, value: of `AttentionCore`'s shapes.
        mask, bias: (1 or batch, 1 or heads, 1 or queries, 1 or keys); the mask is read only where
            `pattern` does not say the same by structure.
        scale: of scores.
        pattern: of whole rows.
    """
    mesh, run = jax.sharding.get_abstract_mesh(), partial(_on_device, scale)
    if not mesh.empty:
        rows = PartitionSpec(RULES["batch"])
        heads_spec = PartitionSpec(RULES["batch"], None, "tensor")
        specs = [None if x is None else _spec(x.shape) for x in (mask, bias)]
        # Lengths of rows are given beside them: by itself, JAX may give each device those of all.
        segments = None if pattern.segments is None else rows
        patterns = pattern.replace(segments=segments, kind=PartitionSpec())
        run = jax.shard_map(
            run,
            in_specs=(heads_spec, heads_spec, heads_spec, *specs, patterns),
            out_specs=heads_spec,
            check_vma=False,
        )
    return run(query, key, value, mask, bias, pattern)


def mesh_refusal(query: Array, key: Array) -> str | None:
    """Why rows and heads cannot be spread over the mesh, so that each device attends to its own."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return None
    (batch, _, heads, _), groups = query.shape, key.shape[2]
    if mesh.shape["sequence"] > 1:
        return "it does not spread the positions of a row (mesh.sequence)"
    if batch % ways_of(mesh.shape, RULES["batch"]):
        return f"{batch} rows do not divide over the mesh"
    if heads % mesh.shape["tensor"] or groups % mesh.shape["tensor"]:
        return f"{heads} heads, of keys {groups}, do not divide over mesh.tensor"
    return None


def refusal(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
    scale: float,
    pattern: Pattern,
) -> str | None:
    """Why cuDNN does not compute `attend` forwards and backwards; None where it does."""
    if reason := mesh_refusal(query, key):
        return reason

    def total(inputs: tuple[Array | None, ...], mask: Array | None, pattern: Pattern) -> Array:
        query, key, value, bias = inputs
        context = _on_device(scale, query, key, value, mask, bias, pattern)
        return context.sum(dtype=jnp.float32)

    arguments = (query, key, value, bias), mask, pattern
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), arguments
    )
    try:
        jax.eval_shape(jax.grad(total), *abstract)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error).rstrip(".")
    return None


def structure(pattern: Pattern, keys: int) -> dict[str, Any] | None:
    """What `jax.nn.dot_product_attention` is told in the place of a mask.

    A causal pattern says nothing of padding, which comes after tokens and is seen by padding
    alone. With a prefix of k keys it is of queries that have k more in front.

    Args:
        pattern: with one window.
        keys: how many there are.

    Returns:
        Arguments by name; None where only the mask says it.
    """
    (window,) = pattern.windows
    local = window is not None and window < keys
    if pattern.masked or pattern.packed or (local and (pattern.prefix or not pattern.causal)):
        return None
    if pattern.causal:
        return {"is_causal": True} | ({"local_window_size": (window - 1, 0)} if local else {})
    if pattern.segments is None:
        return {}
    lengths = (pattern.segments > 0).sum(1, dtype=jnp.int32)
    return {"key_value_seq_lengths": pattern.prefix + jnp.maximum(lengths, 1)}


def kernel_flops(name: str, inputs: Sequence[tuple[str, tuple[int, ...]]]) -> float:
    """FLOPs of one run of a kernel of cuDNN's attention.

    Args:
        name: its own, its mask and its window, as `ftjax.forecast.hlo` has them.
        inputs: dtype and shape of what it reads: query (batch, queries, heads, d) and key first.
    """
    kernel, *mask = name.split()
    if not kernel.startswith("__cudnn$fmha"):
        return 0.0
    (batch, queries, heads, size), (_, keys, *_) = (shape for _, shape in inputs[:2])
    pairs = float(queries * keys)
    if mask[:1] == ["CAUSAL"]:
        window = min(int(mask[1]), queries) if len(mask) > 1 else queries
        pairs = queries * window - window * (window - 1) / 2  # the first see less than a window
    products = 5 if kernel.endswith("Backward") else 2  # scores are computed again
    return 2.0 * products * batch * heads * pairs * size


def _spec(shape: tuple[int, ...]) -> PartitionSpec:
    """Of what broadcasts to (batch, heads, queries, keys)."""
    axes = RULES["batch"], "tensor"
    return PartitionSpec(
        *(axis if n > 1 else None for axis, n in zip(axes, shape[:2], strict=True))
    )


def _on_device(
    scale: float,
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
    pattern: Pattern,
) -> Array:
    """What one device computes of it; of several kinds of layers, that of `pattern.kind`."""
    inputs, kinds = (query, key, value, mask, bias), range(len(pattern.windows))
    branches = [partial(_attend, scale, pattern.of(kind)) for kind in kinds]
    return (
        branches[0](*inputs)
        if len(branches) == 1
        else jax.lax.switch(pattern.kind, branches, *inputs)
    )


def _attend(
    scale: float,
    pattern: Pattern,
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    bias: Array | None,
) -> Array:
    (batch, queries, *_), keys = query.shape, key.shape[1]
    mask_arguments = structure(pattern, keys)
    # The diagonal of a causal kernel begins at the first query and the first key.
    offset = pattern.prefix if mask_arguments is not None and pattern.causal else 0
    # JAX trains on even numbers of queries and of keys alone.
    query_pads = ((0, 0), (offset, (offset + queries) % 2), (0, 0), (0, 0))
    key_pads = ((0, 0), (0, keys % 2), (0, 0), (0, 0))

    def of_scores(x: Array) -> Array:
        broadcast = jnp.broadcast_to(x, (*x.shape[:2], queries, keys))
        return jnp.pad(broadcast, (*query_pads[2:], query_pads[1], key_pads[1]))

    if mask_arguments is None and mask is not None:
        mask_arguments = {"mask": of_scores(mask)}
    elif not mask_arguments and keys % 2:
        mask_arguments = {"key_value_seq_lengths": jnp.full(batch, keys, jnp.int32)}
    if bias is not None:
        bias = of_scores(bias).astype(query.dtype)
    query = jnp.pad(query, query_pads)
    key, value = jnp.pad(key, key_pads), jnp.pad(value, key_pads)
    context = jax.nn.dot_product_attention(
        query, key, value, bias, scale=scale, implementation="cudnn", **(mask_arguments or {})
    )
    return context[:, offset : offset + queries]
