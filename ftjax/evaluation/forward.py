"""Forward passes over a split."""

import time
from collections import deque
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
from ftjax.parallel.mesh import batch_sharding, local_rows, logical_axes, place_rows
from ftjax.partition import merge
from ftjax.paths import Flat
from ftjax.training.programs import Programs, Shapes, abstract, batch_shapes, key_of

RUNNING = 4  # batches whose outputs are on the devices, at most


def most_running() -> int:
    """How many programs may be begun that do not wait for each other.

    Several processes on CPUs, with one device each, may run them in another order than each other,
    and then wait for each other's collectives for ever.
    """
    return 0 if jax.process_count() > 1 and jax.default_backend() == "cpu" else RUNNING


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
        self._programs = Programs()

        def forward(params: Flat, frozen: Flat, batch: Mapping[str, jax.Array]) -> Any:
            outputs = apply(merge(params, frozen), batch)
            return jax.tree.map(lambda x: x.astype(jnp.float32), outputs)

        # Each device has its rows' outputs alone; processes are given all, since each scores all.
        whole = NamedSharding(mesh, PartitionSpec())
        placed = batch_sharding(mesh) if jax.process_count() == 1 else whole
        self._jit = jax.jit(forward, out_shardings=placed)

    def __call__(self, params: Flat, frozen: Flat, examples: Examples, layout: Layout) -> Any:
        """Outputs in the order of the examples: float32 (examples, ...).

        Of a mapping, what is called "tokens" comes in the order of their tokens: (tokens, ...).
        """
        loader, most = self._loader(examples, layout), most_running()
        outputs: dict[str | None, np.ndarray] = {}
        running: deque[tuple[Planned, Any]] = deque()

        def fetch() -> None:
            planned, result = running.popleft()
            named = result if isinstance(result, dict) else {None: result}
            for name, array in named.items():
                of_tokens = name == "tokens"
                if name not in outputs:
                    rows = len(examples.ids.values) if of_tokens else len(examples)
                    more = array.shape[2 if of_tokens else planned.places.ndim :]
                    outputs[name] = np.empty((rows, *more), np.float32)
                if of_tokens:
                    index, inside = token_index(examples, planned)
                else:
                    index, inside = planned.places, planned.places != EMPTY
                outputs[name][index[inside]] = np.asarray(array)[inside]

        try:
            self._begin(params, frozen, loader)
            for planned, batch in loader:
                placed = place_rows(self._mesh, batch, len(planned.places))
                result = self._program(placed)(params, frozen, placed)
                for leaf in jax.tree.leaves(result):
                    leaf.copy_to_host_async()
                running.append((planned, result))
                if len(running) > most:
                    fetch()
        except BaseException:
            self.close()
            raise
        while running:
            fetch()
        return outputs.get(None, outputs)

    def begin(self, params: Flat, frozen: Flat, examples: Examples, layout: Layout) -> None:
        """Begins to compile all that a call will need, the first first."""
        self._begin(*abstract((params, frozen)), self._loader(examples, layout))

    def close(self) -> None:
        """Leaves what has not begun to be compiled."""
        self._programs.close()

    def _loader(self, examples: Examples, layout: Layout) -> Loader:
        local = partial(local_rows, self._mesh)
        return Loader(examples, self._batch_size, layout, None, local, self._vary)

    def _begin(self, params: Flat, frozen: Flat, loader: Loader) -> None:
        for _, (planned, _, local) in loader.ahead(0, len(loader.examples)):
            batch = batch_shapes(self._mesh, local, len(planned.places))
            self._programs.begin(key_of(batch), partial(self._lower, params, frozen, batch))

    def _lower(self, params: Flat, frozen: Flat, batch: Shapes) -> jax.stages.Lowered:
        with logical_axes(self._mesh):
            return self._jit.lower(params, frozen, batch)

    def _program(self, batch: Mapping[str, jax.Array]) -> jax.stages.Compiled:
        start, key = time.perf_counter(), key_of(batch)
        ready = self._programs.ready(key)
        program = self._programs(key)
        self.compile_seconds += 0.0 if ready else time.perf_counter() - start
        return program


def refer(
    forward: Forward, params: Flat, frozen: Flat, examples: Examples, layout: Layout
) -> Examples:
    """The examples with an array "reference": what the untrained model says of them.

    Args:
        forward: of `Run.reference`.
        params: trainable leaves before training.
    """
    reference = forward(params, frozen, examples, layout)
    return replace(examples, arrays={**examples.arrays, "reference": reference})


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
