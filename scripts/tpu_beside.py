"""Our layouts, and MaxText's steps of the same model, batch and topology, by its remat policies.

MaxText's programs were compiled by its own step function and read by the same time model; what it
gave is kept here by hand.
"""

from dataclasses import dataclass

from tpu_case import Case
from tpu_published import WIDE, WIDE_V5P

KEPT = ("model.remat=dots_context", "model.attention_block=1024")
PARTS, EVERY = ("model.parts=2",), ("model.parts=1",)
GATHERED, SOME = ("model.gather_head=True",), ("model.whole=key,value",)
FUSED = "model.attention_fused=True"
ALL, NARROW = ("method.targets=all-linear",), ("model.trainable_dtype=bfloat16",)
SPARSE = ("model.sparse_cores=True",)


@dataclass(frozen=True)
class Beside:
    """A method's step, and MaxText's by policy: GiB, ms, GB gathered, share overlapped.

    Attributes:
        before: whether both were read by the time model before arrays of 16 bits were mended.
    """

    name: str
    case: Case
    peers: dict[str, tuple[float, float, float, float]]
    before: bool = False


V5E, V6E = ("llama-3.1-8b", "v5e:8x8", 64, 4096), ("llama-3.1-8b", "v6e:8x8", 64, 4096)
QWEN = "qwen3-0.6b", "v5e:2x2", 16, 2048
V5P = "llama-3.1-70b", "v5p:4x4x4", 128, 4096
COPIES = ("mesh.data=64", "mesh.fsdp=1")  # of the parameters, one a chip
LESS = ("model.remat=narrow_context", KEPT[1], *EVERY, *GATHERED, *SPARSE)  # without wide features
TUNED = "minimal_with_context, sparse cores, 96 MiB"  # MaxText's options on v6e
BESIDE = (
    Beside(
        "lora q, v",
        Case(*V5E, "lora", (*KEPT, *PARTS, *GATHERED, *SOME)),
        {
            "full": (3.53, 1602.6, 27.89, 0.93),
            "save_dot_except_mlpwi": (6.01, 1514.5, 27.89, 0.76),
            "save_dot_with_context_except_mlp": (7.03, 1476.7, 27.89, 0.76),
            "minimal_with_context": (13.98, 1334.7, 27.89, 0.76),
        },
        before=True,
    ),
    Beside(
        "lora all-linear",
        Case(*V5E, "lora", (*KEPT, *EVERY, *GATHERED, *SOME, *ALL)),
        {"minimal_with_context": (14.25, 1550.2, 27.89, 0.92)},
        before=True,
    ),
    Beside(
        "full, bfloat16 weights",
        Case(*V5E, "full", (*KEPT, *PARTS, *NARROW)),
        {"minimal_with_context": (14.43, 1952.8, 27.89, 0.59)},
        before=True,
    ),
    Beside(
        "lora q, v",
        Case(*QWEN, "lora", (*KEPT, *EVERY, *GATHERED, FUSED, "mesh.data=4", "mesh.fsdp=1")),
        {"minimal_with_context, copies": (10.72, 374.9, 0.0, 0.0)},
    ),
    Beside(
        "lora q, v",
        Case(*V6E, "lora", (*KEPT, *EVERY, *COPIES, WIDE)),
        {
            TUNED: (14.07, 398.8, 27.89, 1.0),
            "minimal_with_context, 96 MiB": (14.06, 572.9, 27.89, 0.0),
            "save_dot_with_context_except_mlp, copies, 96 MiB": (30.40, 871.2, 0.0, 0.0),
        },
    ),
    Beside(
        "lora all-linear",
        Case(*V6E, "lora", (*KEPT, *EVERY, *COPIES, *ALL, WIDE)),
        {
            TUNED: (14.33, 456.5, 27.89, 1.0),
            "minimal_with_context, 96 MiB": (14.32, 648.8, 27.89, 0.0),
        },
    ),
    Beside(
        "full, bfloat16 weights",
        Case(*V6E, "full", (*KEPT, *EVERY, *NARROW, *SPARSE, WIDE)),
        {
            TUNED: (15.51, 508.9, 27.89, 1.0),
            "minimal_with_context, sparse cores": (15.65, 635.3, 27.89, 1.0),
            "minimal_with_context": (16.23, 923.5, 27.89, 0.0),
        },
    ),
    Beside(
        "lora q, v",
        Case(*V5P, "lora", (*LESS, WIDE_V5P)),
        {
            "save_dot_with_context_except_mlp, sparse cores, 64 MiB": (51.20, 7656.6, 275.91, 1.0),
            "save_dot_with_context_except_mlp": (51.20, 10237.8, 275.91, 0.0),
        },
    ),
    Beside(
        "lora all-linear",
        Case(*V5P, "lora", (*LESS, *ALL, WIDE_V5P)),
        {
            "save_dot_with_context_except_mlp, sparse cores, 64 MiB": (52.50, 8330.2, 275.91, 1.0),
            "save_dot_with_context_except_mlp": (52.50, 11693.1, 275.91, 0.0),
        },
    ),
    Beside(
        "full, bfloat16 weights",
        Case(*V5P, "full", (*LESS, *NARROW, WIDE_V5P)),
        {
            "save_dot_with_context_except_mlp, sparse cores, 64 MiB": (59.27, 10142.0, 275.91, 1.0),
            "save_dot_with_context_except_mlp": (56.10, 13250.5, 275.91, 0.0),
        },
    ),
)
