"""Compiled programs by the shapes of what they are given, made in threads ahead of their use.

The compiler lets other threads run. What leads to it, tracing, is Python and done one at a time, so
that the program that is asked for first is there first.
"""

import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ftjax.parallel.mesh import batch_sharding
from ftjax.training.step import compile_step

MOST = 4  # programs that are compiled at once: each may take gigabytes
KEPT = 1.0  # seconds within which a program is there that an earlier process compiled
Shapes = Mapping[str, jax.ShapeDtypeStruct]
Key = tuple[tuple[str, tuple[int, ...]], ...]
_TRACING = threading.Lock()
_BEGUN: set[Future[jax.stages.Compiled]] = set()  # and not yet there, of the whole process


@cache
def _compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(MOST, os.cpu_count() or 1), "compiler")


@cache
def _tracer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "tracer")


def traced(count: Callable[[], float]) -> Future[float]:
    """Begins what is traced alone, to be counted, beside what is compiled."""

    def alone() -> float:
        with _TRACING:
            return count()

    return _tracer().submit(alone)


class Programs:
    """Programs by key."""

    def __init__(self) -> None:
        self._programs: dict[Hashable, Future[jax.stages.Compiled]] = {}
        self._seconds: dict[Hashable, float] = {}  # in the compiler

    def __contains__(self, key: Hashable) -> bool:
        return key in self._programs

    def begin(
        self,
        key: Hashable,
        lower: Callable[[], jax.stages.Lowered],
        then: Callable[[jax.stages.Compiled], None] = lambda program: None,
    ) -> None:
        """Begins to compile a program, unless that has begun.

        Args:
            key: that it is asked for by.
            lower: traces it.
            then: is called with it.
        """

        def compiled() -> jax.stages.Compiled:
            with _TRACING:
                lowered = lower()
            begin = time.monotonic()
            program = compile_step(lowered)
            self._seconds[key] = time.monotonic() - begin
            then(program)
            return program

        if key not in self._programs:
            self._programs[key] = program = _compilers().submit(compiled)
            _BEGUN.add(program)
            program.add_done_callback(_BEGUN.discard)

    def ready(self, key: Hashable) -> bool:
        """Whether nothing is to be waited for."""
        return key in self._programs and self._programs[key].done()

    def __call__(self, key: Hashable) -> jax.stages.Compiled:
        """A program that has begun, when it is there.

        Where it is to run on the processors that compile, all that has begun is waited for: steps
        beside the compiler would say nothing of how fast they are. Not where it was kept by JAX's
        cache, as the others will be.

        Raises:
            Exception: what the compiler said.
        """
        program = self._programs[key]
        if not program.done():
            wait([program])
            if jax.default_backend() == "cpu" and self._seconds.get(key, 0.0) > KEPT:
                wait(list(_BEGUN))
        return program.result()

    def forget(self, others: Callable[[Hashable], bool]) -> None:
        """Lets go of programs that are there, which take memory of devices.

        Args:
            others: whether a key is of those.
        """
        for key, program in list(self._programs.items()):
            if others(key) and program.done():
                del self._programs[key]

    def close(self) -> None:
        """Leaves what has not begun; waits for what has, which nothing can stop."""
        running = [program for program in self._programs.values() if not program.cancel()]
        wait(running)


def key_of(batch: Mapping[str, Any]) -> Key:
    """What programs of batches are told apart by."""
    return tuple((name, tuple(batch[name].shape)) for name in sorted(batch))


def abstract(tree: Any) -> Any:
    """Arrays as their shapes and places."""

    def one(array: jax.Array) -> jax.ShapeDtypeStruct:
        weak = getattr(array, "weak_type", False)  # keys have none
        placed = {"sharding": array.sharding, "weak_type": weak}
        return jax.ShapeDtypeStruct(array.shape, array.dtype, **placed)

    return jax.tree.map(one, tree)


def batch_shapes(mesh: Mesh, local: Mapping[str, np.ndarray], rows: int) -> Shapes:
    """What `place_rows` makes of a host's part of a batch, as shapes in their places."""
    placed, dtype_of = batch_sharding(mesh), jax.dtypes.canonicalize_dtype
    return {
        name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), dtype_of(x.dtype), sharding=placed)
        for name, x in local.items()
    }
