"""Prefix tuning (Li and Liang 2021): learned keys and values that every token attends to."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ftjax.errors import require
from ftjax.methods.base import FREEZE_REST, Interceptor, Method, at, head_rule, leaf, nested
from ftjax.partition import Rules
from ftjax.paths import Base

Array = jax.Array
_normal = nn.initializers.normal(1.0)


def torch_linear(inputs: int) -> Callable[..., Array]:
    """U(−1/√in, 1/√in), of a linear layer's kernel and bias."""
    bound = 1 / math.sqrt(inputs)
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


def later(base: Base, inputs: dict[str, Any], count: int) -> dict[str, Any]:
    """A model's inputs with tokens at positions `count` further on, where it is told positions."""
    if base.modules("cross"):  # encoder-decoders count positions themselves
        return inputs
    ids, positions = inputs["input_ids"], inputs.get("position_ids")
    if positions is None:
        column = inputs.get("column")
        positions = jnp.arange(ids.shape[-1]) if column is None else column
        positions = positions.reshape((1,) * (ids.ndim - 1) + (-1,))
    return inputs | {"position_ids": positions + count}


@dataclass(frozen=True)
class PrefixTuning(Method):
    """softmax(q [P_k; K]ᵀ) [P_v; V] in every layer, with P_k and P_v learned (eq. 3, sec. 4).

    P-tuning v2 (Liu et al. 2022) without `projection`: 2 L k d_kv parameters, d_kv the width of a
    layer's keys. With it, [P_k; P_v] of all layers is Linear(tanh(Linear(Embedding(k, d)))):
    k d + (d + 1) p + (p + 1) 2 L d_kv, p the projection's width (sec. 4.3). The head is trained
    too. For tasks of generation, where the base must stay as it is and prompts are switched.

    Equal to `peft`'s PrefixTuningConfig; its `prompt_embeddings` (k, 2 L d_kv) hold layer l's P_k
    at 2l and its P_v at 2l + 1. Of encoder-decoders it has prefixes in the decoder's own attention
    alone, and because it halves its table twice, layer l reads the 2l-th layer's, modulo L: with
    an even L layers share prefixes and half of the table is unused. Here every layer has its own.
    A prefix is visible from everywhere, also through a sliding window, which in `peft` loses sight
    of it. Layers that share parameters (ALBERT's) share prefixes.

    Attributes:
        length: k.
        projection: p; 0 for none.
        shift: tokens' positions begin at k, as in `peft`; or at 0, as in AdapterHub. Of relative
            positions (T5's), keys begin at k and prefixes at 0 either way, and queries at k or,
            as in AdapterHub, at 0. Prefixes are not rotated.
        places: of an encoder-decoder's attention: "encoder", "decoder", "cross" (all three in
            AdapterHub); empty for ("decoder",). A projection is shared by a place's layers.
    """

    length: int = 30
    projection: int = 0
    shift: bool = True
    places: tuple[str, ...] = ()

    identity: ClassVar = False

    def __post_init__(self) -> None:
        require(self.length > 0, f"method.length must be positive, got {self.length}")
        require(self.projection >= 0, f"method.projection={self.projection} must not be negative")

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
        found = {f"{path}/core": path.split("/")[0] for path in own}
        found |= {f"{path}/core": "cross" for path in cross}
        known = set(found.values())
        wanted = set(self.places) or ({"decoder"} if cross else known)
        require(
            wanted <= known,
            f"method.places={self.places} must be of {tuple(sorted(known))}, which the model has",
        )
        return {path: place for path, place in found.items() if place in wanted}

    def interceptor(self, base: Base, gate: Callable[[], Array] | None = None) -> Interceptor:
        """See `Method.interceptor`.

        Args:
            gate: called in each attention core; prefixes are multiplied by what it gives, which
                broadcasts to (batch, k, heads, d).
        """
        cores, hidden = self.cores(base), {}
        places = sorted(set(cores.values()))

        def root(module: nn.Module, call: Callable, input_ids: Array | None = None, **inputs: Any):
            for place in places if self.projection else ():
                hidden[place] = self.hidden(module, place, base)
            inputs |= {"input_ids": input_ids}
            moved = self.shift and input_ids is not None
            return call(**(later(base, inputs, self.length) if moved else inputs))

        def joined(
            module: nn.Module,
            call: Callable,
            query: Array,
            key: Array,
            value: Array,
            mask: Array | None,
            bias: Array | None = None,
        ) -> Array:
            h = hidden.get(cores["/".join(module.path)])
            front = [
                self.prefix(module, name, h, x) for name, x in (("key", key), ("value", value))
            ]
            if gate is not None:
                front = [prefix * gate().astype(prefix.dtype) for prefix in front]
            if mask is not None:
                mask = _widened(mask, self.length, True)
            if bias is not None and bias.shape[-1] == key.shape[1]:
                bias = _widened(bias, self.length, 0)
            key, value = (
                jnp.concatenate([jnp.broadcast_to(prefix, (len(x), *prefix.shape[1:])), x], 1)
                for prefix, x in zip(front, (key, value), strict=True)
            )
            return call(query, key, value, mask, bias)

        def relative(module: nn.Module, call: Callable, queries: Array, keys: Array) -> Array:
            keys = jnp.concatenate([jnp.arange(self.length), keys + self.length])
            return call(queries + self.columns, keys)

        def counted(module: nn.Module, call: Callable, count: int, start: int = 0) -> Array:
            return call(count, start + self.columns)

        def told(module: nn.Module, call: Callable, ids: Array) -> Array:
            return call(ids + self.columns)

        sides = [place for place in places if base.modules("cross") and place != "cross"]
        tables = {f"{side}/positions" for side in sides}
        return nested(
            at({""}, root),
            at(cores, joined),
            at({f"{side}/relative" for side in sides}, relative),
            at(tables, counted, "first"),
            at(tables, told),
        )

    def hidden(self, module: nn.Module, place: str, base: Base) -> Array:
        """tanh(Linear(Embedding)) of the model itself: (k, projection)."""
        name, sizes = f"prefix_{place}", base.projections()
        width = next(size for path, (size, _) in sizes.items() if path.endswith("/query"))
        linear = torch_linear(width)
        table = leaf(module, f"{name}_embedding", _normal, (self.length, width), (None, "embed"))
        kernel = leaf(module, f"{name}_kernel", linear, (width, self.projection), ("embed", "rank"))
        return jnp.tanh(
            table @ kernel + leaf(module, f"{name}_bias", linear, (self.projection,), ("rank",))
        )

    def prefix(self, module: nn.Module, name: str, hidden: Array | None, like: Array) -> Array:
        """P_k or P_v of a layer (1, k, heads, d), as its keys or values (batch, n, heads, d)."""
        heads, size = like.shape[2:]
        name, width = f"prefix_{name}", heads * size
        if hidden is None:
            flat = leaf(module, name, _normal, (self.length, width), (None, "kv"))
        else:
            linear = torch_linear(self.projection)
            shape, axes = (self.projection, width), ("rank", "kv")
            flat = hidden @ leaf(module, f"{name}_kernel", linear, shape, axes)
            flat = flat + leaf(module, f"{name}_bias", linear, (width,), ("kv",))
        return flat.reshape(1, self.length, heads, size).astype(like.dtype)


def _widened(x: Array, count: int, value: Any) -> Array:
    """More of `value` in front of the last axis."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(count, 0)], constant_values=value)
