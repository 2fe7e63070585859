"""Forward passes over a split."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ftjax.data.encode import Examples
from ftjax.data.loading import Loader
from ftjax.data.planning import EMPTY, Layout
from ftjax.parallel.mesh import local_rows, logical_axes, place_rows
from ftjax.partition import merge
from ftjax.paths import Flat


class Forward:
    """A compiled forward pass over whole splits.

    Args:
        mesh: where it runs.
        batch_size: examples of a global batch.
        apply: what to compute of parameters and a batch.
    """

    def __init__(
        self,
        mesh: Mesh,
        batch_size: int,
        apply: Callable[[Flat, Mapping[str, jax.Array]], jax.Array],
    ) -> None:
        self._mesh, self._batch_size = mesh, batch_size
        self.compile_seconds = 0.0
        self._programs: dict[tuple, Any] = {}

        def forward(params: Flat, frozen: Flat, batch: Mapping[str, jax.Array]) -> jax.Array:
            return apply(merge(params, frozen), batch).astype(jnp.float32)

        self._jit = jax.jit(forward, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(
        self, params: Flat, frozen: Flat, examples: Examples, layout: Layout
    ) -> np.ndarray:
        """Outputs in the order of the examples: float32 (examples, ...)."""
        local = partial(local_rows, self._mesh)
        pending = []
        for planned, batch in Loader(examples, self._batch_size, layout, None, local):
            placed = place_rows(self._mesh, batch, len(planned.places))
            pending.append((planned.places, self._program(params, frozen, placed)))
        shape = pending[0][1].shape[pending[0][0].ndim :]
        outputs = np.empty((len(examples), *shape), np.float32)
        for places, out in pending:
            real = places != EMPTY
            outputs[places[real]] = np.asarray(out)[real]
        return outputs

    def _program(self, params: Flat, frozen: Flat, batch: Mapping[str, jax.Array]) -> jax.Array:
        key = tuple((name, x.shape) for name, x in sorted(batch.items()))
        if key not in self._programs:
            start = time.perf_counter()
            with logical_axes(self._mesh):
                self._programs[key] = self._jit.lower(params, frozen, batch).compile()
            self.compile_seconds += time.perf_counter() - start
        return self._programs[key](params, frozen, batch)


def cache_features(
    forward: Forward, params: Flat, frozen: Flat, examples: Examples, layout: Layout
) -> Examples:
    """The examples with what the head reads in place of their tokens.

    Lengths are kept, so that tokens are still counted.
    """
    features = forward(params, frozen, examples, layout)
    return replace(
        examples,
        ids=np.zeros(0, np.int32),
        type_ids=None,
        arrays={**examples.arrays, "features": features},
    )
