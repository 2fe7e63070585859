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

from ftjax.data.encode import Examples, Ragged
from ftjax.data.loading import Loader, Vary, token_index
from ftjax.data.planning import EMPTY, Layout, Planned
from ftjax.parallel.mesh import local_rows, logical_axes, place_rows
from ftjax.partition import merge
from ftjax.paths import Flat


class Forward:
    """A compiled forward pass over whole splits.

    Args:
        mesh: where it runs.
        batch_size: examples of a global batch.
        apply: what to compute of parameters and a batch.
        vary: makes of examples those that are run, always the same.
    """

    def __init__(
        self,
        mesh: Mesh,
        batch_size: int,
        apply: Callable[[Flat, Mapping[str, jax.Array]], Any],
        vary: Vary | None = None,
    ) -> None:
        self._mesh, self._batch_size, self._vary = mesh, batch_size, vary
        self.compile_seconds = 0.0
        self._programs: dict[tuple, Any] = {}

        def forward(params: Flat, frozen: Flat, batch: Mapping[str, jax.Array]) -> Any:
            found = apply(merge(params, frozen), batch)
            return jax.tree.map(lambda x: x.astype(jnp.float32), found)

        self._jit = jax.jit(forward, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __call__(self, params: Flat, frozen: Flat, examples: Examples, layout: Layout) -> Any:
        """Outputs in the order of the examples: float32 (examples, ...).

        Of a mapping, what is called "tokens" comes in the order of their tokens: (tokens, ...).
        """
        local = partial(local_rows, self._mesh)
        loader = Loader(examples, self._batch_size, layout, None, local, self._vary)
        pending = []
        for planned, batch in loader:
            placed = place_rows(self._mesh, batch, len(planned.places))
            pending.append((planned, self._program(params, frozen, placed)))
        if not isinstance(pending[0][1], dict):
            return _by_example(examples, pending)
        found = {}
        for name in pending[0][1]:
            each = [(planned, out[name]) for planned, out in pending]
            found[name] = (_by_token if name == "tokens" else _by_example)(examples, each)
        return found

    def _program(self, params: Flat, frozen: Flat, batch: Mapping[str, jax.Array]) -> Any:
        key = tuple((name, x.shape) for name, x in sorted(batch.items()))
        if key not in self._programs:
            start = time.perf_counter()
            with logical_axes(self._mesh):
                self._programs[key] = self._jit.lower(params, frozen, batch).compile()
            self.compile_seconds += time.perf_counter() - start
        return self._programs[key](params, frozen, batch)


def _by_example(examples: Examples, pending: list[tuple[Planned, jax.Array]]) -> np.ndarray:
    first, out = pending[0]
    outputs = np.empty((len(examples), *out.shape[first.places.ndim :]), np.float32)
    for planned, out in pending:
        real = planned.places != EMPTY
        outputs[planned.places[real]] = np.asarray(out)[real]
    return outputs


def _by_token(examples: Examples, pending: list[tuple[Planned, jax.Array]]) -> np.ndarray:
    more = pending[0][1].shape[2:]
    outputs = np.empty((len(examples.ids.values), *more), np.float32)
    for planned, out in pending:
        index, inside = token_index(examples, planned)
        outputs[index[inside]] = np.asarray(out)[inside]
    return outputs


def refer(
    forward: Forward, params: Flat, frozen: Flat, examples: Examples, layout: Layout
) -> Examples:
    """The examples with an array "reference": what the untrained model says of them.

    Args:
        forward: of `Run.reference`.
        params: trainable leaves before training.
    """
    found = forward(params, frozen, examples, layout)
    return replace(examples, arrays={**examples.arrays, "reference": found})


def cache_features(
    forward: Forward, params: Flat, frozen: Flat, examples: Examples, layout: Layout
) -> Examples:
    """The examples with what the head reads in place of their tokens.

    Lengths are kept, so that tokens are still counted.
    """
    features = forward(params, frozen, examples, layout)
    return replace(
        examples,
        ids=Ragged(np.zeros(0, np.int32), examples.ids.offsets),
        tokens={},
        arrays={**examples.arrays, "features": features},
    )
