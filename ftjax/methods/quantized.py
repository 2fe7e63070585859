"""Methods over a quantized base (QLoRA, Dettmers et al. 2023): frozen kernels in 4 or 8 bits."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.sharding import NamedSharding

from ftjax import methods
from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.methods.base import Interceptor, Method, at, nested
from ftjax.parallel.mesh import fitted
from ftjax.partition import FROZEN, Rules
from ftjax.paths import Flat, expand
from ftjax.quantization import BLOCK, FORMATS, Quantized
from ftjax.registry import as_tuples


def _inner(name: str) -> property:
    """An attribute that is the other method's."""
    return property(lambda self: getattr(self.inner, name))


@dataclass(frozen=True)
class QLora(Method):
    """Another method, over projections that are stored quantized and dequantized in use.

    Kernels that the other method leaves frozen are quantized as they are loaded, and each is
    dequantized inside its layer, in the forward and again in the backward pass; no gradient
    reaches them. "nf4" takes 4.127 bits a parameter, "int8" 8 and a scale an output, see
    `ftjax.quantization`. Embeddings, norms, biases, routers of experts, the head and what trains
    stay as they are. The base model is then the quantized one: step 0 equals it, and merged it is
    dequantized. For models that do not fit otherwise; steps are slower.

    Attributes:
        bits: "nf4" or "int8".
        over: settings of the other method: its name and hyperparameters.
    """

    bits: Literal[tuple(FORMATS)] = "nf4"
    over: Mapping[str, Any] = FrozenDict({"name": "lora", "targets": "all-linear"})

    non_identity: ClassVar = {"over": {"name": "lora", "targets": "all-linear", "init": "random"}}

    def __post_init__(self) -> None:
        super().__post_init__()
        values = {key: as_tuples(value) for key, value in self.over.items()}
        object.__setattr__(self, "over", FrozenDict(values))  # hashable
        name = values.get("name")
        require(name not in (None, "qlora"), f"method.over.name={name!r} must be another method")
        require(self.inner.trains, f"method.over.name={name!r} trains nothing")

    @cached_property
    def inner(self) -> Method:
        """The other method."""
        return methods.create(self.over)

    def kernels(self, base: Base) -> frozenset[str]:
        """Module paths of the projections that are quantized."""
        rules, routers = self.inner.rules(base), base.routers()
        found = {
            path: size
            for path, (size, _) in base.projections().items()
            if path not in routers and is_frozen(rules, f"{path}/kernel")
        }
        require(bool(found), f"method.over={dict(self.over)} trains every projection: none is left")
        for path, size in found.items():
            fits = self.bits != "nf4" or size % BLOCK == 0
            require(fits, f"method.bits=nf4: blocks of {BLOCK} do not divide {path!r}, of {size}")
        return frozenset(found)

    # What quantization does not change.
    columns, identity = _inner("columns"), _inner("identity")
    rules, cuts, at_step = _inner("rules"), _inner("cuts"), _inner("at_step")
    rate_of, optimizer, penalty = _inner("rate_of"), _inner("optimizer"), _inner("penalty")
    report = _inner("report")

    def interceptor(self, base: Base) -> Interceptor:
        return nested(self._dequantizing(base), self.inner.interceptor(base))

    def disabled(self, base: Base) -> Interceptor:
        return nested(self._dequantizing(base), self.inner.disabled(base))

    def _dequantizing(self, base: Base) -> Interceptor:
        def dequantized(module: nn.Module, call: Callable, size: int) -> jax.Array:
            if module.is_initializing():
                return call(size)
            return module.get_variable("params", "kernel").dequantized()

        def recomputed(module: nn.Module, call: Callable, x: jax.Array, kernel: Any, *rest: Any):
            if module.is_initializing():
                return call(x, kernel, *rest)

            @jax.checkpoint  # the backward pass dequantizes again: no kernel is kept for it
            def product(x: jax.Array, kernel: Quantized) -> jax.Array:
                return call(x, kernel.dequantized(), *rest)

            return product(x, module.get_variable("params", "kernel"))

        kernels = self.kernels(base)
        return nested(at(kernels, dequantized, "weight"), at(kernels, recomputed, "product"))

    def stored(self, base: Base, path: str, array: jax.Array) -> Any:
        projection = path.removesuffix("/kernel") in base.projections().keys() - base.routers()
        if not projection or not is_frozen(self.inner.rules(base), path):
            return self.inner.stored(base, path, array)
        quantize, placed = _quantizer(self.bits, array.shape, array.sharding)
        if isinstance(array, jax.Array):
            return quantize(array)
        parts = jax.eval_shape(quantize, array)
        return jax.tree.map(lambda part, at: part.update(sharding=at), parts, placed)

    def initialize(self, base: Base, params: Flat, key: jax.Array) -> Flat:
        return self.inner.initialize(base, dequantized(params), key)

    def merge(self, base: Base, params: Flat) -> Flat:
        return self.inner.merge(base, dequantized(params))


@cache
def _quantizer(
    bits: str, shape: tuple[int, ...], sharding: NamedSharding | None
) -> tuple[Callable, Quantized]:
    """Compiled once for kernels of a shape, whose parts come to lie as the kernel lay; and where
    that is."""
    quantize = FORMATS[bits].of
    parts = jax.eval_shape(quantize, jax.ShapeDtypeStruct(shape, jnp.float32))

    def at(part: jax.ShapeDtypeStruct) -> NamedSharding | None:
        return sharding and fitted(sharding, len(shape), part.shape)

    placed = jax.tree.map(at, parts)
    return jax.jit(quantize, out_shardings=placed if sharding else None), placed


def is_frozen(rules: Rules, path: str) -> bool:
    """Whether no layer of a parameter trains."""

    def group(name: str) -> str:
        return next(group for pattern, group in rules if re.fullmatch(pattern, name))

    return {group(name) for name in expand(path)} == {FROZEN}


def dequantized(params: Mapping[str, Any]) -> Flat:
    """Parameters with plain float32 arrays in the place of quantized ones."""
    return {p: x.dequantized() if isinstance(x, Quantized) else x for p, x in params.items()}
