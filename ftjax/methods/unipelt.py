"""UniPELT (Mao et al. 2022): prefixes, adapters and LoRA, each turned up or down by a gate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax

from ftjax import methods
from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.adapter import Bottleneck
from ftjax.methods.bottleneck import Houlsby, Parallel, Pfeiffer
from ftjax.methods.combination import Combination, Part
from ftjax.methods.example_tokens import segments_of, side_of
from ftjax.methods.initializers import NORMAL, ZEROS
from ftjax.methods.interception import ROOT, Interceptor, at, nested
from ftjax.methods.lora import Lora
from ftjax.methods.method import Method, Transform
from ftjax.methods.prefix import PrefixTuning
from ftjax.methods.relay import Relay
from ftjax.partition import Rules
from ftjax.paths import Flat

Array = jax.Array
GATED = (PrefixTuning, Houlsby, Pfeiffer, Parallel, Lora)


@dataclass(frozen=True)
class Unipelt(Combination):
    """Each part's contribution is multiplied by a gate, a number in (0, 1) an example and module.

    A gate is the mean over the example's tokens of σ(Linear(d → 1)) (eq. 3) of what is adapted:
    the input of an adapter, of a projection, of an attention, whose prefix keys and values it
    multiplies. AdapterHub's means have padding in them; ours do not, so that padding changes
    nothing. It also leaves out LoRA's α/r, which is 1 by default. Gates cannot tell packed
    examples of a row apart. In causal models they see the whole row; in generation they are
    those of the prompt. BERT-base: 11,083,376.

    Attributes:
        parts: of prefix_tuning, adapters and lora, any or all.
    """

    parts: tuple[Part, ...] = (
        {"name": "prefix_tuning", "length": 10, "projection": 512, "shift": False},
        {"name": "pfeiffer"},
        {"name": "lora"},
    )

    non_identity: ClassVar = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.parts:
            known = type(part) in GATED
            require(known, f"method.parts: unipelt has no gate for {methods.name_of(part)}")

    def rules(self, base: Base) -> Rules:
        return ((r".*/gate_.*", "gate"), *super().rules(base))

    def optimizer(self, base: Base, group: str, *others: Any) -> Transform:
        return super().optimizer(base, "head" if group == "gate" else group, *others)

    def merge(self, base: Base, params: Flat) -> Flat:
        return Method.merge(self, base, params)  # gates depend on the input

    def interceptor(self, base: Base) -> Interceptor:
        gate = Gate(base)
        parts = (gate.part(part) for part in self.parts)
        return nested(*parts, gate.interceptor(), at(ROOT, self.guarded))


class Gate:
    """Makes gates, in the model's call under way."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.segments: Relay[dict[str, Array] | None] = Relay()  # None: one more token

    def interceptor(self) -> Interceptor:
        """Relays what gates need of the model's inputs."""

        def segments(module: nn.Module, input_ids: Array | None = None, **inputs: Any):
            packed = inputs.get("segment_ids") is not None
            require(not packed, "unipelt's gates cannot tell packed examples of a row apart")
            if inputs.get("features") is not None or inputs.get("column") is not None:
                return None
            return segments_of(self.base, inputs | {"input_ids": input_ids})

        def encode(module: nn.Module, call: Callable, inputs: Any, starts_only: bool) -> Any:
            return call(inputs, False)  # gates of the last layer, too, see all tokens

        return nested(self.segments.at(ROOT, segments), at(ROOT, encode, "encode"))

    def __call__(self, module: nn.Module, x: Array, name: str) -> Array:
        """Of x (batch, length, d): float32 (batch, 1, 1, 1).

        Args:
            module: has the parameters.
            x: what is adapted.
            name: of the part, for a module may have several.
        """
        segments = self.segments.value
        if segments is None:
            return module.get_variable("cache", f"gate_{name}")
        kernel = leaf(module, f"gate_{name}_kernel", NORMAL, (x.shape[-1], 1), ("embed", None))
        bias = leaf(module, f"gate_{name}_bias", ZEROS, (1,), (None,))
        path = "/".join(module.path)
        of_memory = path.endswith(("cross/key", "cross/value"))
        real = segments["rows" if of_memory else side_of(self.base, path)][..., None] > 0
        rows = x.ndim == real.ndim
        require(rows, f"unipelt has no gate for {path!r}, which relative positions pass, too")
        gates = nn.sigmoid(x.astype(kernel.dtype) @ kernel + bias)
        gate = ((gates * real).sum(1) / real.sum(1).clip(1))[:, None, None]
        if module.is_mutable_collection("cache") and not module.is_initializing():
            module.put_variable("cache", f"gate_{name}", gate)
        return gate

    def part(self, part: Any) -> Interceptor:
        """A part's interceptor, gated."""
        if isinstance(part, PrefixTuning):
            return self.prefix(part)
        return self.lora(part) if isinstance(part, Lora) else self.adapter(part)

    def adapter(self, part: Bottleneck) -> Interceptor:
        def adapter(module: nn.Module, x: Array) -> Array:
            gate = self(module, x, "adapter")[..., 0]
            return gate.astype(x.dtype) * part.adapter(module, x)

        return part.placed(self.base, adapter)

    def lora(self, part: Lora) -> Interceptor:
        matched = part.matched(self.base)
        apart = self.base.tables.isdisjoint(matched)
        require(apart, "method.parts: lora's targets must be projections here")

        def adapted(module: nn.Module, call: Callable, x: Array) -> Array:
            y = call(x)
            gate = self(module, x, "lora")[..., 0].astype(y.dtype)
            own = part.of(self.base, "/".join(module.path))
            return y + gate * own.update(module, x.astype(y.dtype), y.shape[-1])

        return at(matched, adapted)

    def prefix(self, part: PrefixTuning) -> Interceptor:
        gate: Relay[Array] = Relay()

        def gated(module: nn.Module, x: Array, *_: Any) -> Array:
            return self(module, x, "prefix")

        attentions = {core.rpartition("/")[0] for core in part.cores(self.base)}
        joined = part.interceptor(self.base, lambda: gate.value)
        return nested(joined, gate.at(attentions, gated))
