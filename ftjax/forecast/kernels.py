"""How long kernels take of which the compiler says nothing: attention's, by the blocks they visit,
and products with quantized kernels."""

import math
import re

from ftjax.forecast.chips import Chip
from ftjax.forecast.hlo import Instruction, kernel_name
from ftjax.quantized_product_tpu import kernel_flops

Shape = tuple[str, tuple[int, ...]]
BLOCK_START = 0.35e-6  # seconds a block, to begin its transfers and its loop
LANES = 8 * 128 * 4  # operations of the vector unit a cycle, in one core
# Products of (queries, keys) by features a block, and operations of the vector unit a score.
WORK = {"fwd": (2, 10), "dq": (3, 12), "dkv": (4, 12), "fused": (5, 14)}
BLOCK = 512  # along a side, where a program does not say
BLOCKS = {
    "fwd": ("block_q", "block_kv"),
    "dq": ("block_q_dq", "block_kv_dq"),
    "dkv": ("block_q_dkv", "block_kv_dkv"),
}


def splash_seconds(chip: Chip, line: Instruction, read: tuple[Shape, ...]) -> float:
    """Seconds of one run of a splash attention kernel, causal, by the slower of its two units.

    Blocks past the diagonal are skipped; those on it are computed whole.

    Args:
        chip: whose matrix units take `chip.array` features at once.
        line: of the compiled program, that calls it.
        read: dtype and shape of what it reads: query (..., heads, length, d) and key come first
            of what has d features.
    """
    name = kernel_name(line, read)
    kind = next((kind for kind in BLOCKS if f"_{kind}_" in name), None)
    arrays = [shape for dtype, shape in read if dtype in ("bf16", "f32") and len(shape) > 2]
    if not name.startswith("splash") or kind is None or len(arrays) < 2:
        return 0.0
    (*rows, queries, size), (*_, keys, _) = arrays[:2]
    sizes = dict(re.findall(r"(block_\w+)\W+(\d+)", line.text))
    sums = next((shape[0] for dtype, shape in line.shapes if dtype == "f32" and len(shape) == 2), 0)
    q, k = (int(sizes.get(key, sums or BLOCK)) for key in BLOCKS[kind])
    products, operations = WORK["fused" if name.endswith("_fused") else kind]
    first = keys - queries  # keys that every query sees
    visited = sum(-(-min(first + end, keys) // k) for end in range(q, queries + q, q))
    blocks = math.prod(rows) * visited
    filled = min(size, chip.array) / chip.array
    matrix = products * 2 * q * k * size / (chip.flops * filled)
    vector = operations * q * k / (LANES * chip.clock * chip.cores)
    return blocks * (max(matrix, vector) + BLOCK_START)


def quantized_seconds(chip: Chip, line: Instruction, read: tuple[Shape, ...]) -> float:
    """Seconds of one run of a product that decodes its kernel: of the product alone, at least.

    Args:
        chip: whose peak is reached.
        line: of the compiled program, that calls it.
        read: dtype and shape of what it reads.
    """
    return kernel_flops(kernel_name(line, read), read) / chip.flops
