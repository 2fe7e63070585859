"""What one line of a program takes by the compiler's own estimate, and where that is mended.

Where nothing is multiplied, elements of 16 bits are estimated as ones of 32: copying 16,777,216 of
them on v6e 0.102 ms in bfloat16 as in float32, where 0.049 ms are measured (tpu-recipes,
microbenchmarks/README.md). What only moves takes the share of its estimate that its bytes are of
those. What computes as well does where its estimate is no more than memory would take for 32 bits;
where it is more, the estimate is of computing, and stays.

Products stay as they are estimated, which is above what is reached: 8,192 cubed on v6e, with 64 MiB
for fusions, 1.47 ms, where the same page measures 1.33.
"""

import re
from collections.abc import Mapping

from ftjax.forecast.chips import Chip
from ftjax.forecast.hlo import Array, Instruction, moved_bytes, nbytes, product_flops

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
REACHED = 0.81  # of the memory's bandwidth, as the compiler takes it; 0.83 are measured
PRODUCTS = ("dot", "convolution")
MOVES = ("copy", "transpose", "reshape", "pad", "slice", "concatenate")


def line_seconds(
    chip: Chip,
    line: Instruction,
    lines: Mapping[str, Instruction],
    computations: Mapping[str, list[Instruction]],
) -> float:
    """Seconds of what a line computes and moves.

    Without an estimate the longer of its FLOPs at the peak and its bytes at the bandwidth.

    Args:
        chip: that runs it.
        line: of the compiled program; no kernel and no collective.
        lines: of its computation, by name.
        computations: of the module.
    """
    moved = moved_bytes(line, lines, computations)
    if not (cycles := CYCLES.search(line.text)):
        shapes = {name: other.shapes for name, other in lines.items()}
        flops = product_flops(line, shapes) if line.opcode in PRODUCTS else 0.0
        return max(flops / chip.flops, moved / chip.bandwidth)
    seconds = int(cycles[1]) / chip.clock
    inside = computations.get(line.called("calls") or "", [])
    if any(part.opcode in PRODUCTS for part in (line, *inside)):
        return seconds
    widened = moved_bytes(line, lines, computations, _widened)
    memory = REACHED * chip.bandwidth
    if line.opcode in MOVES or seconds <= widened / memory:
        return min(seconds, max(seconds * moved / max(widened, 1.0), moved / memory))
    return seconds


def _widened(shape: Array) -> float:
    """Bytes of an array if its elements had 32 bits at least."""
    dtype, dimensions = shape
    return max(nbytes(shape), nbytes(("f32", dimensions)) if dtype != "pred" else 0.0)
