"""Methods that add parameters to modules of the base, by a formula that can be merged."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax

from ftjax.base_model import Base
from ftjax.methods.interception import Interceptor, at, nested
from ftjax.methods.method import FREEZE_REST, Method, head_rule
from ftjax.partition import Rules
from ftjax.paths import Flat, expand

Shape = tuple[int, int]  # (in, out)


@dataclass(frozen=True)
class Additive(Method):
    """Adds leaves to the modules that it targets; merged, each is a plain module again.

    What the method is on, `matched`, is the one source of what is called differently, trained and
    merged, so that several such methods share a model. A head that a task has is trained too.
    Subclasses say what an adapted module gives (`update`, or `adapted`), and what it is merged to.

    Attributes:
        targets: names of projections, as "query,value", or "all-linear", or a pattern of names;
            empty for the family's default.
    """

    targets: str | tuple[str, ...] = ()

    group: ClassVar[str]  # of what trains
    leaves: ClassVar[tuple[str, ...]]  # all that a module may be given
    fixed: ClassVar[tuple[str, ...]] = ()  # those of `leaves` that do not train
    shared: ClassVar[tuple[str, ...]] = ()  # leaves of the model itself, which do not train
    reads_weights: ClassVar[bool] = False  # of its modules, as the base has them

    def matched(self, base: Base) -> Mapping[str, Shape]:
        """Module paths of what the method is on → (in, out), found and checked once a model.

        Raises:
            UserError: targets match nothing, or the hyperparameters do not fit a module.
        """

        def checked() -> Mapping[str, Shape]:
            selected = self.selected(base)
            for module, shape in selected.items():
                self.of(base, module).check(module, shape)
            return MappingProxyType(selected)

        return base.once(self, checked)

    def selected(self, base: Base) -> Mapping[str, Shape]:
        """The modules that `targets` selects; `matched` is what to ask for."""
        return base.match(self.targets or base.default_targets)

    def check(self, module: str, shape: Shape) -> None:
        """Raises UserError where the hyperparameters do not fit a module."""

    def of(self, base: Base, module: str) -> Self:
        """The method as it is on one of its modules."""
        return self

    def rules(self, base: Base) -> Rules:
        trained = (name for name in self.leaves if name not in self.fixed)
        return ((leaves_of(self.matched(base), *trained), self.group), head_rule(base), FREEZE_REST)

    def interceptor(self, base: Base) -> Interceptor | None:
        variants: dict[Self, set[str]] = {}
        for module in self.matched(base):
            variants.setdefault(self.of(base, module), set()).add(module)
        return nested(*(variant.on(base, frozenset(its)) for variant, its in variants.items()))

    def on(self, base: Base, modules: frozenset[str]) -> Interceptor | None:
        """The interceptor of modules on which the method is as it is here."""
        return at(modules, self.adapted)

    def adapted(self, module: nn.Module, call: Callable, x: jax.Array) -> jax.Array:
        """What an adapted projection gives."""
        y = call(x)
        return y + self.update(module, x.astype(y.dtype), y.shape[-1])

    def update(self, module: nn.Module, x: jax.Array, features: int) -> jax.Array:
        """What is added to a projection's output (..., features), in x's dtype."""
        raise NotImplementedError

    def initialize(self, base: Base, params: Flat, key: jax.Array) -> Flat:
        started = {}
        for module, leaves in self.added(base, params).items():
            weight = params[weight_of(module, params)]
            for name, value in self.of(base, module).first(weight, **leaves).items():
                started[f"{module}/{name}"] = value
        return started

    def first(self, weight: jax.Array, **leaves: jax.Array) -> Flat:
        """Those of a module's leaves whose first value depends on its weights (..., in, out)."""
        return {}

    def added(self, base: Base, params: Mapping[str, Any]) -> dict[str, Flat]:
        """Module path → those of its leaves that `params` has, by name."""
        by_module = {
            module: {n: params[f"{module}/{n}"] for n in self.leaves if f"{module}/{n}" in params}
            for module in self.matched(base)
        }
        return {module: leaves for module, leaves in by_module.items() if leaves}

    def merge(self, base: Base, params: Flat) -> Flat:
        """Module by module, of all layers at once where layers are stacked."""
        merged = dict(params)
        shared = {name: merged.pop(name) for name in self.shared if name in merged}
        for module, leaves in self.added(base, params).items():
            for name in leaves:
                del merged[f"{module}/{name}"]
            method, leaves = self.of(base, module), {**leaves, **shared}
            weight = weight_of(module, merged)
            merged[weight] = method.merged(merged[weight], **leaves).astype(merged[weight].dtype)
            before = merged.get(f"{module}/bias")
            bias = None if before is None else method.merged_bias(before, **leaves)
            if bias is not before:
                merged[f"{module}/bias"] = bias.astype(before.dtype)
        return merged

    def merged(self, kernel: jax.Array, **leaves: jax.Array) -> jax.Array:
        """The weights (..., in, out) of the plain module that computes the same."""
        raise NotImplementedError

    def merged_bias(self, bias: jax.Array, **leaves: jax.Array) -> jax.Array:
        """Its bias (..., out)."""
        return bias


def leaves_of(modules: Collection[str], *names: str) -> str:
    """The pattern of leaves of these names in modules, by unrolled path."""
    unrolled = (re.escape(name) for path in modules for name in expand(path))
    return rf"({'|'.join(unrolled)})/({'|'.join(names)})"


def weight_of(module: str, params: Mapping[str, Any]) -> str:
    """Path of what an adapted module multiplies by, or looks up in."""
    table = f"{module}/embedding"
    return table if table in params else f"{module}/kernel"
