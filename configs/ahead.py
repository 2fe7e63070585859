"""A large model over a pod of chips, to be compiled ahead of time.

ftjax compile --config configs/ahead.py:lora --topology v5e:8x8
ftjax compile --config configs/ahead.py:full/classification --topology v5e:4x8 \\
    --config.model.path=t5-11b --config.data.max_length=512
"""

from ml_collections import ConfigDict

from ftjax.config import default_config


def get_config(what: str = "lora") -> ConfigDict:
    """`what`: a method, and after a stroke a task."""
    method, _, task = what.partition("/")
    config = default_config(method, task or "causal_lm")
    config.model.path = "llama-3.1-8b"
    config.model.dtype = "bfloat16"
    config.model.segments = "scan"
    config.model.remat = "full"
    if task in ("", "causal_lm") and method in ("full", "lora"):
        config.model.parts = 4  # of feed-forward blocks that the method leaves as they are
    config.data.max_length = 4096
    config.data.batching = "pad"
    config.train.batch_size = 64
    config.mesh.data = 1
    config.mesh.fsdp = -1
    if method == "lora":
        config.method.rank = 16
        config.method.alpha = 16.0
    return config
