"""The programs of a run's steps, one a shape of batches and a phase, compiled ahead."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from ftjax.data.loading import Loader
from ftjax.data.streaming import StreamLoader
from ftjax.parallel.mesh import logical_axes
from ftjax.paths import Flat
from ftjax.training.programs import Key, Programs, Shapes, abstract, batch_shapes, key_of, traced
from ftjax.training.recipe import Recipe
from ftjax.training.step import State, lower_step, step_options
from ftjax.tuned import Tuned

FAR = 1000  # steps within which a phase may begin that is prepared for


class StepPrograms:
    """Compiled steps.

    Args:
        recipe: what they do.
        loader: whose batches they take.
        mesh: where they run.
        frozen: leaves.
        count: FLOPs of a step on a batch of some shapes; None where nobody asks for them.
        dump: takes a program, and a name for it.
    """

    def __init__(
        self,
        recipe: Recipe,
        loader: Loader | StreamLoader,
        mesh: Mesh,
        frozen: Flat,
        count: Callable[[Shapes], float] | None = None,
        dump: Callable[[jax.stages.Compiled, str], None] | None = None,
    ) -> None:
        self._recipe, self._loader, self.mesh, self._frozen = recipe, loader, mesh, frozen
        self._count, self._dump = count, dump
        self._programs = Programs()
        self._flops: dict[Key, Future[float]] = {}

    def ready(self, phase: Tuned, shapes: Key) -> bool:
        """Whether nothing is to be waited for."""
        return self._programs.ready((shapes, id(phase)))

    def __call__(self, phase: Tuned, shapes: Key) -> jax.stages.Compiled:
        """The program of a step that has begun, when it is there."""
        return self._programs((shapes, id(phase)))

    def begin(self, phase: Tuned, state: State, number: int) -> None:
        """Begins to compile all that the rest of a step's epoch needs, the first first.

        And what the phase that follows needs for it, while this one trains; what those before
        needed is let go of.

        Args:
            phase: what trains at the step.
            state: before it.
            number: its own.
        """
        recipe, held, shapes = self._recipe, abstract(state), {}
        phase_at, last = recipe.tuned.at_step, min(number + FAR, recipe.total)
        for at, (planned, _, local) in self._loader.ahead(number, recipe.total - number):
            shapes[at] = batch_shapes(self.mesh, local, len(planned.places))
        self._begin(phase, held, [batch for at, batch in shapes.items() if phase_at(at) is phase])
        after = next((at for at in range(number, last) if phase_at(at) is not phase), None)
        needed = {id(phase)} | (set() if after is None else {id(phase_at(after))})
        self._programs.forget(lambda key: key[1] not in needed)
        if after is not None:
            held = recipe.state_shapes(held.params, self.mesh, after + 1)
            self._begin(phase_at(after), held, shapes.values())

    def _begin(self, phase: Tuned, state: State, batches: Iterable[Shapes]) -> None:
        step = self._recipe.step(phase)
        for batch in batches:
            key, name = key_of(batch), "x".join(map(str, next(iter(batch.values())).shape))
            then = partial(self._dump, name=name) if self._dump else lambda _: None
            self._programs.begin((key, id(phase)), partial(self._lower, step, state, batch), then)
            if self._count and key not in self._flops:
                self._flops[key] = traced(partial(self._count, batch))

    def flops(self, shapes: Key) -> float:
        """What a step on such a batch needs at least; 0 where that is not asked for."""
        return self._flops[shapes].result() if self._count else 0.0

    def close(self) -> None:
        for future in self._flops.values():
            future.cancel()
        self._programs.close()

    def _lower(self, step: Any, state: State, batch: Shapes) -> jax.stages.Lowered:
        with logical_axes(self.mesh):
            options = step_options(self._recipe.config, self.mesh)
            return lower_step(step, state, self._frozen, batch, self.mesh, options)
