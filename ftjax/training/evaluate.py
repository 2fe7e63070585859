"""Forward passes over a split, and the task's metrics on what they give."""

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
from ftjax.tuned import Tuned


class Forward:
    """The compiled forward pass of a model under a method, over whole splits.

    Args:
        tuned: the model under its method.
        mesh: where it runs.
        batch_size: examples of a global batch.
        features_only: what the head reads, instead of logits.
        apply: what to compute of parameters and a batch, instead of the model's outputs.
    """

    def __init__(
        self,
        tuned: Tuned,
        mesh: Mesh,
        batch_size: int,
        features_only: bool = False,
        apply: Callable[[Flat, Mapping[str, jax.Array]], jax.Array] | None = None,
    ) -> None:
        self._mesh, self._batch_size = mesh, batch_size
        self.compile_seconds = 0.0
        self._programs: dict[tuple, Any] = {}
        apply = apply or partial(tuned.apply, features_only=features_only)

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


def score(
    task: Any, logits: np.ndarray, examples: Examples, names: tuple[str, ...]
) -> dict[str, Any]:
    """The task's metrics, and the mean loss without smoothing."""
    labels = examples.arrays["labels"]
    batch = {"labels": jnp.asarray(labels), "weights": jnp.ones(len(labels))}
    loss = task.loss(jnp.asarray(logits), batch, train=False)
    return {
        "loss": float(loss.total / loss.weight),
        **task.metrics(logits, labels, names),
    }
