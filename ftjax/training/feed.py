"""A run's batches, placed on the mesh, and where in the data it is."""

from typing import Any

import jax
from jax.sharding import Mesh

from ftjax.data.encode import Examples
from ftjax.data.loading import Counts, Loader
from ftjax.data.streaming import StreamLoader
from ftjax.parallel.mesh import place_rows


class Feed:
    """Batches of steps in turn.

    Args:
        loader: of examples that are here, or of a stream.
        mesh: where batches are placed.
        total: steps of the whole run.
    """

    def __init__(self, loader: Loader | StreamLoader, mesh: Mesh, total: int) -> None:
        self.loader, self._mesh = loader, mesh
        self._batches = loader.iterate(total)

    def __call__(self) -> tuple[dict[str, jax.Array], Counts]:
        """The next batch, and what is in it."""
        planned, counts, rows = next(self._batches)
        return place_rows(self._mesh, rows, len(planned.places)), counts

    def window(self, step: int) -> Examples | None:
        """The window of a stream that a step is the first of; else None."""
        return self.loader.begun(step) if isinstance(self.loader, StreamLoader) else None

    def epochs(self, step: int) -> float | None:
        """Passes over the data by a step; a stream has none."""
        per_epoch = self.loader.steps_per_epoch
        return round(step / per_epoch, 4) if per_epoch else None

    def saved(self) -> dict[str, Any]:
        """What a checkpoint has of it, as JSON has it."""
        streams = isinstance(self.loader, StreamLoader)
        return {
            "data": self._batches.get_state(),
            "stream": self.loader.saved() if streams else None,
        }

    def go_on(self, saved: dict[str, Any]) -> None:
        """Begins where another was when it was saved."""
        if isinstance(self.loader, StreamLoader):
            # Earlier versions kept no positions: they read the rows before once more
            self.loader.go_on(saved.get("stream") or {"starts": saved["windows"], "sources": {}})
        self._batches.set_state(saved["data"])
