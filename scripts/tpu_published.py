"""Step times of full fine-tuning that MaxText's makers publish, and our step of the same batch.

What recipes log is taken as it is. Where a table has the share of peak, or FLOPs a second, the step
follows by FLOPs as MaxText counted them when those tables were written: three times the products of
all kernels, and attention of all pairs of tokens.
"""

import math
from dataclasses import dataclass

from tpu_case import SIZES, Case

from ftjax.forecast import fastest

# Options of the compiler that recipes name: gathers beside computation, and more of the chip's own
# memory for fusions.
GATHERS = f"train.compiler={','.join(fastest.GATHERS)}"
WIDE = f"train.compiler={','.join(fastest.WIDE)}"
WIDE_V5P = f"train.compiler={','.join(fastest.WIDE_V5P)}"
WIDER = f"train.compiler={','.join(fastest.GATHERS + fastest.WIDE)}"
FLAGS = {  # how they are called in tables
    WIDER: "compiler: gathers, 96 MiB",
    GATHERS: "compiler: gathers",
    WIDE: "compiler: 96 MiB",
    WIDE_V5P: "compiler: 64 MiB",
}


@dataclass(frozen=True)
class Published:
    """A step whose time is published: seconds, as `source` has them, under a policy of theirs."""

    case: Case
    seconds: float
    remat: str
    source: str


def token_flops(model: str, length: int, vocabulary: int = 32000) -> float:
    """Of one token's step, as MaxText counted them: attention sees all of the sequence."""
    hidden, wide, layers, heads, pairs = SIZES[model]
    attention = 128 * hidden * (2 * heads + 2 * pairs)
    kernels = layers * (attention + 3 * hidden * wide) + hidden * vocabulary
    return 6.0 * kernels + 12.0 * layers * 128 * heads * length


def seconds(model: str, tokens: int, length: int, rate: float) -> float:
    """Of a step of so many tokens a chip at so many FLOPs a second."""
    return tokens * token_flops(model, length) / rate


def own(model: str, topology: str, rows: int, length: int, *overrides: str) -> Case:
    """Our plain step: layers computed again as `overrides` say, nothing in parts."""
    return Case(model, topology, rows, length, "full", (*overrides, "model.parts=1"))


def logged(model: str, topology: str, rows: int, length: int, took: float, *more: str) -> Published:
    """A step of tpu-recipes for v6e, which keep products of attention in the machine's memory."""
    case = own(model, topology, rows, length, "model.remat=full", BLOCKS[2048], *more, WIDER)
    return Published(case, took, "attention's products offloaded", "tpu-recipes, trillium: logged")


def rated(
    model: str, topology: str, rows: int, remat: str, rate: float, *settings: str
) -> Published:
    """A step of MaxText's own models, 2,048 tokens a row, by its FLOPs a second and chip."""
    chips = math.prod(int(size) for size in topology.partition(":")[2].split("x"))
    took = seconds(model, rows * 2048, 2048, rate)
    case = own(model, topology, rows * chips, 2048, *settings, BLOCKS[512], GATHERS)
    return Published(case, took, remat, f"MaxText, {topology[:3]}: {rate / 1e12:.0f} TFLOP/s")


BLOCKS = {size: f"model.attention_block={size}" for size in (512, 2048)}
FULL, KEPT = "model.remat=full", "model.remat=dots_context"
NARROW = "model.remat=narrow_context"
LLAMA2 = "llama-2-70b"
PUBLISHED = (
    rated("maxtext-16b", "v5e:16x16", 6, "full", 120e12, FULL),
    rated("maxtext-32b", "v5e:16x16", 4, "full", 132e12, FULL),
    rated("maxtext-64b", "v5e:16x16", 2, "full", 118e12, FULL),
    rated(LLAMA2, "v5e:16x16", 2, "qkv_proj_offloaded", 0.57 * 197e12, FULL),
    rated("maxtext-32b", "v5p:4x4x4", 6, "minimal", 328e12, KEPT, "mesh.tensor=4"),
    Published(
        own(LLAMA2, "v5p:4x4x4", 128, 4096, NARROW, BLOCKS[512], GATHERS),
        2 * 4096 / 692,
        "save_dot_except_mlpwi",
        "MaxText, tiering: 692 tokens/s",
    ),
    logged("llama-3.1-8b", "v6e:2x4", 24, 8192, 3.443),
    logged("llama-3.1-8b", "v6e:4x4", 48, 8192, 3.393),
    logged("llama-3.1-8b", "v6e:8x8", 320, 8192, 5.652),
    logged("llama-3.1-8b", "v6e:16x16", 1024, 8192, 4.546),
    logged("mistral-7b", "v6e:2x4", 48, 8192, 6.320),
    logged("llama-3.1-70b", "v6e:4x8", 64, 8192, 17.790, "model.trainable_dtype=bfloat16"),
    logged("llama-3.1-70b", "v6e:8x8", 128, 8192, 18.688),
)
