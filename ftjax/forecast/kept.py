"""Bytes that layers keep for the backward pass under a policy, before anything is compiled."""

import math

from ml_collections import ConfigDict

from ftjax.models.stack import POLICIES
from ftjax.parallel.mesh import AXES, RULES
from ftjax.tuned import Tuned

# Of each policy: what of layers' products it keeps, and whether what attention's kernel gives.
KEPT = {
    "dots": ("all", True),
    "dots_context": ("all", True),
    "dots_no_batch": ("all", False),
    "narrow_context": ("narrow", True),
    "context": ("none", True),
    "offload": ("none", False),
    "full": ("none", False),
}
ORDER = [policy for policy in POLICIES if policy != "offload"]  # from most memory to least


def kept_bytes(model: Tuned, policy: str, tokens: float, itemsize: int = 2) -> float:
    """At least so many bytes a device, of layers' inputs and of what a policy keeps of them.

    Args:
        model: whose layers.
        policy: a key of `ftjax.models.stack.POLICIES`; of "none" what "dots_context" keeps counts.
        tokens: of one device, at a time.
        itemsize: of the compute dtype.
    """
    products, context = KEPT.get(policy, KEPT["dots_context"])
    widths = 0
    for path, leaf in model.base.shapes.items():
        axes, layers = model.axes[path], leaf.shape[0] if "layers" in model.axes[path] else 1
        if "layer" not in path or not path.endswith("/kernel"):
            continue
        *_, into, out = axes
        wide, last = out == "mlp", into == "mlp"
        if products == "all" or (products == "narrow" and not wide):
            widths += layers * leaf.shape[-1] * (not last)  # the last product is read by nothing
        widths += layers * leaf.shape[-1] * (context and "/query/" in path)
        widths += layers * leaf.shape[-2] * ("/query/" in path)  # the layer's input
    return widths * tokens * itemsize


def device_tokens(config: ConfigDict, chips: int) -> float:
    """Positions of a batch that a device has at a time."""
    sizes = {axis: config.mesh[axis] for axis in AXES}
    known = math.prod(size for size in sizes.values() if size > 0)
    sizes = {axis: chips // known if size == -1 else size for axis, size in sizes.items()}
    ways = math.prod(sizes[axis] for axis in (*RULES["batch"], RULES["length"]))
    tokens = config.train.batch_size * config.data.max_length / config.train.accumulation
    return tokens / ways
