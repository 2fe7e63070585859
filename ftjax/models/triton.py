"""Attention of packed rows by JAX's flash kernels for GPUs: numbers of segments, and no mask.

cuDNN takes packed rows with a mask of (queries, keys) for each row and gives a gradient of it
besides, so that long rows fill the memory. These kernels compare segments where they compute.
They are in Triton, through Pallas, by Dao (2023), arXiv:2307.08691.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ftjax.models.cudnn import mesh_refusal
from ftjax.models.masks import Pattern
from ftjax.parallel.mesh import RULES

Array = jax.Array
BLOCK, BACKWARD = 64, 32  # queries and keys at a time, of each pass
CAUSAL = "causal"
WIDEST = 128  # features of a head whose blocks fit a core's shared memory


def attend(query: Array, key: Array, value: Array, scale: float, pattern: Pattern) -> Array:
    """softmax(scale · q kᵀ, masked) v, over the mesh: rows by batch, heads by tensor.

    Args:
        query: (batch, length, heads, d).
        key, value: (batch, length, heads or a divisor of it, d).
        scale: of scores.
        pattern: of packed rows.
    """
    mesh, run = jax.sharding.get_abstract_mesh(), partial(_on_device, scale, pattern.causal)
    if not mesh.empty:
        rows, heads = PartitionSpec(RULES["batch"]), PartitionSpec(RULES["batch"], None, "tensor")
        run = jax.shard_map(
            run, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
        )
    return run(query, key, value, pattern.segments)


def refusal(
    query: Array, key: Array, softcap: float | None, bias: Array | None, pattern: Pattern
) -> str | None:
    """Why these kernels do not compute `attend`; None where they do."""
    (_, length, _, size), keys = query.shape, key.shape[1]
    if softcap or bias is not None:
        return "it has neither soft-capping nor biases"
    more = pattern.masked or pattern.prefix or pattern.windows != (None,) or keys != length
    if not pattern.packed or more:
        return "it is for packed rows that see themselves, without prefixes or windows"
    if size > WIDEST:
        return f"heads of {size} features are wider than {WIDEST}"
    return mesh_refusal(query, key)


def kernel_flops(name: str, inputs: Sequence[tuple[str, tuple[int, ...]]]) -> float:
    """FLOPs of one run of a kernel of this attention, as if every row were one example.

    Args:
        name: its own, and what it sees, as `ftjax.forecast.hlo` has them.
        inputs: dtype and shape of what it reads: query (batch, length, heads, d) and key first.
    """
    kernel, *seen = name.split()
    products = {"mha_forward": 2, "mha_backward": 7}.get(kernel, 0)  # scores and dP are there twice
    if not products:
        return 0.0
    batch, length, heads, size = inputs[0][1]
    pairs = length * (length + 1) / 2 if seen == [CAUSAL] else float(length**2)
    return 2.0 * products * batch * heads * pairs * size


def _on_device(
    scale: float, causal: bool, query: Array, key: Array, value: Array, segments: Array
) -> Array:
    """What one device computes of it; rows are lengthened to whole blocks, as padding."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas.ops.gpu import attention

    length, heads = query.shape[1:3]
    block = min(BLOCK, pl.next_power_of_2(max(length, BACKWARD)))
    sizes = attention.BlockSizes(
        block_q=block,
        block_k=block,
        block_q_dkv=BACKWARD,
        block_kv_dkv=BACKWARD,
        block_q_dq=BACKWARD,
        block_kv_dq=BACKWARD,
    )

    def padded(x: Array, value: int = 0) -> Array:
        widths = (0, 0), (0, -length % block), *((0, 0),) * (x.ndim - 2)
        return jnp.pad(x, widths, constant_values=value)

    # A head of keys for each of queries: the kernels know no groups.
    key, value = (jnp.repeat(x, heads // x.shape[2], 2) for x in (key, value))
    inputs = *map(padded, (query, key, value)), padded(segments.astype(jnp.int32), -1)
    with jax.named_scope(CAUSAL if causal else "both_sides"):  # which compiled programs are asked
        context = attention.mha(*inputs, sm_scale=scale, causal=causal, block_sizes=sizes)
    return context[:, :length]
