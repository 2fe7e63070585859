"""Prefix tuning (Li and Liang 2021): learned keys and values that every token attends to."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.leaf import leaf
from ftjax.methods.initializers import STANDARD_NORMAL
from ftjax.methods.interception import ROOT, Interceptor, at, nested
from ftjax.methods.method import FREEZE_REST, Method, head_rule
from ftjax.methods.prompt_encoders import Get, linear
from ftjax.methods.relay import Relay
from ftjax.methods.virtual_tokens import later, moved_sides, widened
from ftjax.options import Natural, Positive
from ftjax.partition import Rules
from ftjax.paths import expand

Array = jax.Array


@dataclass(frozen=True)
class PrefixTuning(Method):
    """softmax(q [P_k; K]ᵀ) [P_v; V] in every layer, with P_k and P_v learned (eq. 3, sec. 4).

    P-tuning v2 (Liu et al. 2022) without `projection`: 2 L k d_kv parameters, d_kv the width of a
    layer's keys. With it, [P_k; P_v] of all layers is Linear(tanh(Linear(Embedding(k, d)))):
    k d + (d + 1) p + (p + 1) 2 L d_kv, p the projection's width (sec. 4.3). The head is trained
    too. For tasks of generation, where the base must stay as it is and prompts are switched.

    Equal to `peft`'s PrefixTuningConfig; its `prompt_embeddings` (k, 2 L d_kv) hold layer l's P_k
    at 2l and its P_v at 2l + 1. Of encoder-decoders it has prefixes in the decoder's own attention
    alone, and of a table for L layers, the encoder's, layer l reads the 2l-th layer's, modulo L:
    with an even L layers share prefixes and half of the table is unused. Here every layer has its
    own, and the table exported has 2 L, half of them unused. A prefix is visible from everywhere,
    also through a sliding window, which in `peft` loses sight of it. Layers that share parameters
    (ALBERT's) share prefixes.

    Attributes:
        length: k.
        projection: p; 0 for none.
        shift: tokens' positions begin at k, as in `peft`; or at 0, as in AdapterHub. Of relative
            positions (T5's), keys begin at k and prefixes at 0 either way, and queries at k or,
            as in AdapterHub, at 0. Prefixes are not rotated.
        places: of an encoder-decoder's attention: "encoder", "decoder", "cross" (all three in
            AdapterHub); empty for ("decoder",). A projection is shared by a place's layers.
    """

    length: Positive = 30
    projection: Natural = 0
    shift: bool = True
    places: tuple[str, ...] = ()

    identity: ClassVar = False

    @property
    def columns(self) -> int:
        return self.length if self.shift else 0

    def rules(self, base: Base) -> Rules:
        return ((r"(.*/)?prefix_[^/]*", "prefix"), head_rule(base), FREEZE_REST)

    def cores(self, base: Base) -> dict[str, str]:
        """Path of each attention core that has a prefix → its place.

        Raises:
            UserError: the model has not all of `places`.
        """
        own, cross = base.modules("attention"), base.modules("cross")
        place_of = {f"{path}/core": path.split("/")[0] for path in own}
        place_of |= {f"{path}/core": "cross" for path in cross}
        known = set(place_of.values())
        chosen = set(self.places) or ({"decoder"} if cross else known)
        require(
            chosen <= known,
            f"method.places={self.places} must be of {tuple(sorted(known))}, which the model has",
        )
        return {path: place for path, place in place_of.items() if place in chosen}

    def in_order(self, base: Base) -> list[str]:
        """Unrolled paths of the cores, from the input to the output."""
        unrolled = [name for path in self.cores(base) for name in expand(path)]
        return sorted(unrolled, key=lambda path: [int(n) for n in re.findall(r"\d+", path)])

    def interceptor(self, base: Base, gate: Callable[[], Array] | None = None) -> Interceptor:
        """See `Method.interceptor`.

        Args:
            gate: called in each attention core; prefixes are multiplied by what it gives, which
                broadcasts to (batch, k, heads, d).
        """
        cores = self.cores(base)
        places = sorted(set(cores.values()))
        hidden: Relay[dict[str, Array | None]] = Relay()

        def make_hidden(module: nn.Module, *_: Any, **inputs: Any) -> dict[str, Array | None]:
            return {place: self.hidden(partial(leaf, module), base, place) for place in places}

        def shifted(module: nn.Module, call: Callable, input_ids: Array | None = None, **inputs):
            inputs |= {"input_ids": input_ids}
            moved = self.shift and not base.two_sided and inputs.get("features") is None
            return call(**(later(inputs, self.length) if moved else inputs))

        def joined(
            module: nn.Module,
            call: Callable,
            query: Array,
            key: Array,
            value: Array,
            mask: Array | None,
            bias: Array | None = None,
            pattern: Any = None,
        ) -> Array:
            h = hidden.value[cores["/".join(module.path)]]
            if mask is not None:
                mask = widened(mask, self.length, True)
            if bias is not None and bias.shape[-1] == key.shape[1]:
                bias = widened(bias, self.length, 0)
            pattern = pattern and pattern.after(self.length)
            key = self.joined(module, h, "key", key, gate)
            value = self.joined(module, h, "value", value, gate)
            return call(query, key, value, mask, bias, pattern)

        sides = [place for place in places if base.two_sided and place != "cross"]
        beside = moved_sides(sides, self.columns, self.length)
        return nested(hidden.at(ROOT, make_hidden), at(ROOT, shifted), at(cores, joined), beside)

    def joined(
        self,
        module: nn.Module,
        hidden: Array | None,
        kind: str,
        x: Array,
        gate: Callable[[], Array] | None,
    ) -> Array:
        """Keys or values x (batch, keys, heads, d) of a core after their prefix."""
        heads, size = x.shape[2:]
        prefix = self.prefix(partial(leaf, module), hidden, kind, heads * size)
        prefix = prefix.reshape(1, self.length, heads, size)
        prefix = prefix if gate is None else prefix * gate()
        prefix = jnp.broadcast_to(prefix, (len(x), *prefix.shape[1:]))
        return jnp.concatenate([prefix.astype(x.dtype), x], 1)

    def hidden(self, get: Get, base: Base, place: str) -> Array | None:
        """tanh(Linear(Embedding)) for a place (k, p), from the model's parameters; or None."""
        if not self.projection:
            return None
        sizes, name = base.projections(), f"prefix_{place}"
        width = next(size for path, (size, _) in sizes.items() if path.endswith("/query"))
        x = get(f"{name}_embedding", STANDARD_NORMAL, (self.length, width), (None, "embed"))
        return jnp.tanh(linear(get, name, x, self.projection))

    def prefix(self, get: Get, hidden: Array | None, kind: str, width: int) -> Array:
        """P_k or P_v of a layer (k, width), from the parameters of its core."""
        if hidden is not None:
            return linear(get, f"prefix_{kind}", hidden, width, "kv")
        return get(f"prefix_{kind}", STANDARD_NORMAL, (self.length, width), (None, "kv"))
