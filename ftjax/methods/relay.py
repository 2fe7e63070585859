"""What is made in one module's call and read in others'."""

from collections.abc import Callable, Collection
from typing import Any, Generic, TypeVar

import flax.linen as nn

from ftjax.methods.interception import Interceptor, at

T = TypeVar("T")


class Relay(Generic[T]):
    """A value that one module's call makes and the calls of others read.

    A wrap sees its own module alone. What is made at the model's root, of its parameters or its
    inputs, and read in layers, scanned ones too, is passed on by one of these. An interceptor is
    made anew for each call of the model, and its relays with it.

    Attributes:
        value: as last made; None before.
    """

    def __init__(self) -> None:
        self.value: T | None = None

    def at(
        self, modules: Collection[str], make: Callable[..., T], method: str = "__call__"
    ) -> Interceptor:
        """Makes the value, by `make(module, *args, **kwargs)`, before the module's method runs."""

        def wrap(module: nn.Module, call: Callable, *args: Any, **kwargs: Any) -> Any:
            self.value = make(module, *args, **kwargs)
            return call(*args, **kwargs)

        return at(modules, wrap, method)

    def take(self) -> T | None:
        """The value, for the first that asks: the next gets None."""
        value, self.value = self.value, None
        return value
