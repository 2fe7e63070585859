"""One step after another: a batch, the program for it, and what trains now."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ftjax.parallel.agreement import require_same
from ftjax.paths import Flat
from ftjax.training.feed import Feed
from ftjax.training.programs import key_of
from ftjax.training.recipe import Recipe
from ftjax.training.step import State, carried_moments
from ftjax.training.step_log import StepLog
from ftjax.training.step_programs import StepPrograms
from ftjax.tuned import Tuned


class Stepper:
    """Takes steps.

    Args:
        recipe: what they do.
        feed: their batches.
        programs: compiled for them.
        frozen: leaves.
        log: what they say goes there.
        done: steps before the first one.
        beside: begins to compile what else is needed soon, given the state; called once.
    """

    def __init__(
        self,
        recipe: Recipe,
        feed: Feed,
        programs: StepPrograms,
        frozen: Flat,
        log: StepLog,
        done: int,
        beside: Callable[[State], None],
    ) -> None:
        self._recipe, self._feed, self._programs = recipe, feed, programs
        self._frozen, self._log, self._beside = frozen, log, beside
        self._phase = recipe.phase(done)

    def __call__(self, state: State, number: int) -> State:
        """The state after a step.

        Args:
            state: before it.
            number: steps before it.
        """
        start = time.perf_counter()
        batch, counts = self._feed()
        self._log.progress.totals.waited += time.perf_counter() - start
        if (window := self._feed.window(number)) is not None:
            self._log.flush()  # hosts may not run what follows and a step in the same order
            require_same("a window of the stream", window.content())
        before, self._phase = self._phase, self._recipe.tuned.at_step(number)
        state = self._carried(state, before)
        shapes = key_of(batch)
        if self._phase is not before or not self._programs.ready(self._phase, shapes):
            self._compile(state, number, shapes)
        state, metrics = self._programs(self._phase, shapes)(state, self._frozen, batch)
        self._log.add(number + 1, metrics, counts, shapes)
        return state

    def _carried(self, state: State, before: Tuned) -> State:
        """The state with the moments of what trains now, where that is other than before."""
        phase = self._phase
        if phase is before or phase.partition.labels == before.partition.labels:
            return state
        active, optimizer = phase.partition.split(state.params)[0], self._recipe.optimizer(phase)
        mesh = self._programs.mesh
        return replace(
            state,
            opt_state=carried_moments(state.opt_state, active, optimizer, mesh, state.step),
        )

    def _compile(self, state: State, number: int, shapes: Any) -> None:
        """Begins all programs that are needed from here on, and waits for the step's own."""
        log, beside = self._log, self._beside
        log.flush()
        log.progress.totals.seconds += log.clock.lap()  # of waiting for the batch
        self._programs.begin(self._phase, state, number)
        self._beside = lambda _: None
        beside(state)
        self._programs(self._phase, shapes)
        log.progress.compile_seconds += log.clock.lap()
