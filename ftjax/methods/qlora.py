"""Methods over a quantized base (QLoRA, Dettmers et al. 2023): frozen kernels in 4 or 8 bits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.sharding import NamedSharding

from ftjax import methods, quantized_product
from ftjax.base_model import Base
from ftjax.errors import require
from ftjax.methods.interception import Interceptor, at, nested
from ftjax.methods.method import Method, Transform
from ftjax.parallel.mesh import fitted
from ftjax.partition import Rules, is_frozen
from ftjax.paths import Flat
from ftjax.quantization import BLOCK, FORMATS, Quantized, dequantized
from ftjax.registry import as_tuples


@dataclass(frozen=True)
class QLora(Method):
    """Another method, over projections that are stored quantized and dequantized in use.

    Kernels that the other method leaves frozen are quantized as they are loaded, and decoded tile
    by tile inside their products, forward and backward (`ftjax.quantized_product`; those of
    experts, and where a method reads weights, as a whole); no gradient reaches them. "nf4" takes
    4.127 bits a parameter, "int8" 8 and a scale an output, see `ftjax.quantization`. Embeddings,
    norms, biases, routers of experts, the head and what trains stay as they are. The base model is
    then the quantized one: step 0 equals it, and merged it is dequantized. For models that do not
    fit otherwise; steps are slower.

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
        sizes = {
            path: size
            for path, (size, _) in base.projections().items()
            if path not in routers and is_frozen(rules, f"{path}/kernel")
        }
        require(bool(sizes), f"method.over={dict(self.over)} trains every projection: none is left")
        for path, size in sizes.items():
            fits = self.bits != "nf4" or size % BLOCK == 0
            require(fits, f"method.bits=nf4: blocks of {BLOCK} do not divide {path!r}, of {size}")
        return frozenset(sizes)

    def interceptor(self, base: Base) -> Interceptor:
        return nested(self._dequantizing(base), self.inner.interceptor(base))

    def disabled(self, base: Base) -> Interceptor:
        return nested(self._dequantizing(base), self.inner.disabled(base))

    def _dequantizing(self, base: Base) -> Interceptor:
        def weight(module: nn.Module, call: Callable, size: int) -> jax.Array:
            if module.is_initializing():
                return call(size)
            return module.get_variable("params", "kernel").dequantized()

        def product(module: nn.Module, call: Callable, x: jax.Array, kernel: Any, *rest: Any):
            if module.is_initializing():
                return call(x, kernel, *rest)
            kernel = module.get_variable("params", "kernel")
            if len(kernel.shape) == 2:
                return quantized_product.matmul(x, kernel, module.axes)

            @jax.checkpoint  # the backward pass dequantizes again: no kernel is kept for it
            def recomputed(x: jax.Array, kernel: Quantized) -> jax.Array:
                return call(x, kernel.dequantized(), *rest)

            return recomputed(x, kernel)

        kernels = self.kernels(base)
        return nested(at(kernels, weight, "weight"), at(kernels, product, "product"))

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

    # What quantization does not change.

    @property
    def identity(self) -> bool:
        return self.inner.identity

    @property
    def columns(self) -> int:
        return self.inner.columns

    @property
    def inserted(self) -> int:
        return self.inner.inserted

    def rules(self, base: Base) -> Rules:
        return self.inner.rules(base)

    def cuts(self, layers: int) -> tuple[int, ...]:
        return self.inner.cuts(layers)

    def at_step(self, step: int, base: Base) -> Method:
        return self.inner.at_step(step, base)

    def rate_of(self, base: Base, path: str) -> float:
        return self.inner.rate_of(base, path)

    def penalty(self, base: Base, params: Flat) -> jax.Array | None:
        return self.inner.penalty(base, params)

    def optimizer(self, base: Base, group: str, *others: Any) -> Transform:
        return self.inner.optimizer(base, group, *others)

    def report(self, base: Base, params: Flat) -> dict[str, Any]:
        return self.inner.report(base, params)


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
