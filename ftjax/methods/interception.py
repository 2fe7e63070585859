"""What is called instead of a module's method, and what a method does within that module."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from ftjax.dropout import dropout

ROOT = frozenset({""})  # the path of the model itself


@dataclass(frozen=True)
class Interceptor:
    """For `flax.linen.intercept_methods`: what is called instead of methods of some modules.

    Attributes:
        wraps: (paths of modules, method, wrap), the innermost first.
    """

    wraps: tuple[tuple[Collection[str], str, Callable[..., Any]], ...]

    def __call__(self, call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
        path = "/".join(context.module.path)
        for modules, method, wrap in self.wraps:
            if context.method_name == method and path in modules:
                call = partial(wrap, context.module, call)
        return call(*args, **kwargs)

    def changes(self, pattern: str, *methods: str) -> bool:
        """Whether any of these methods of a module whose path matches is called differently."""
        return any(
            method in methods and re.fullmatch(pattern, path)
            for modules, method, _ in self.wraps
            for path in modules
        )


def at(modules: Collection[str], wrap: Callable[..., Any], method: str = "__call__") -> Interceptor:
    """An interceptor that calls `wrap(module, call, *args, **kwargs)` instead of `call`.

    Args:
        modules: paths of those that it is for.
        wrap: gives what the module's method then returns; `call` is that method.
        method: the one that is wrapped.
    """
    return Interceptor(((modules, method, wrap),))


def nested(*interceptors: Interceptor | None) -> Interceptor | None:
    """One interceptor from several, the first innermost; None adds nothing."""
    wraps = [wrap for interceptor in interceptors if interceptor for wrap in interceptor.wraps]
    return Interceptor(tuple(wraps)) if wraps else None


def dropped(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
    """x after dropout, in training: where the module has an RNG for it."""
    if rate and module.has_rng("dropout"):
        return dropout(module.make_rng("dropout"), x, rate)
    return x
