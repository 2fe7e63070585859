"""Values that several threads ask for, computed once and, where that is known, ahead."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """A function of a number, whose last values are kept.

    Who asks for a value that is being computed waits for it; for others nobody waits.

    Args:
        compute: the function.
        capacity: how many values are kept; those of the lowest numbers go first.
    """

    def __init__(self, compute: Callable[[int], T], capacity: int) -> None:
        self._compute, self._capacity = compute, capacity
        self._values: dict[int, Future[T]] = {}
        self._lock = threading.Lock()

    def __call__(self, number: int) -> T:
        value, new = self._value(number)
        if new:
            self._fill(number, value)
        return value.result()

    def begin(self, number: int) -> None:
        """Computes a value in a thread of its own, unless it is there or on its way."""
        value, new = self._value(number)
        if new:
            threading.Thread(target=self._fill, args=(number, value), daemon=True).start()

    def _value(self, number: int) -> tuple[Future[T], bool]:
        """A value, and whether it is to be computed by who asks."""
        with self._lock:
            new = number not in self._values
            value = self._values.setdefault(number, Future())
            for lowest in sorted(self._values)[: -self._capacity]:
                del self._values[lowest]
        return value, new

    def _fill(self, number: int, value: Future[T]) -> None:
        try:
            value.set_result(self._compute(number))
        except BaseException as error:  # raised where it is asked for; the next try may succeed
            with self._lock:
                self._values.pop(number, None)
            value.set_exception(error)
