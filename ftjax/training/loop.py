"""The training loop: step, log, evaluate, save, stop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ftjax.training.step import State
from ftjax.training.step_log import StepLog


@dataclass(frozen=True)
class Rhythm:
    """When a run does what it does besides steps; always at its end.

    Attributes:
        total: steps of the run.
        log_every: steps between rows of the log.
        eval_every: steps between evaluations, after which it saves, too.
        save_every: steps between checkpoints.
    """

    total: int
    log_every: int
    eval_every: int
    save_every: int

    def logs(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.total

    def evaluates(self, step: int) -> bool:
        return step % self.eval_every == 0 or step == self.total

    def saves(self, step: int) -> bool:
        return step % self.save_every == 0 or self.evaluates(step)


class Evaluate(Protocol):
    """Evaluates a state, and knows whether it is time to stop early."""

    def __call__(self, state: State, step: int) -> None: ...

    @property
    def is_done(self) -> bool: ...


class Save(Protocol):
    """Begins to save a state, and waits until all is saved."""

    def __call__(self, state: State) -> None: ...

    def wait(self) -> None: ...


def train_steps(
    state: State,
    take_step: Callable[[State, int], State],
    log: StepLog,
    evaluate: Evaluate,
    save: Save,
    stopping: Callable[[int], int],
    rhythm: Rhythm,
) -> tuple[State, int]:
    """Steps until the end, early stopping, or a signal, whose number comes with the last state.

    Args:
        state: at which to begin.
        take_step: the state before a step and its number → the state after it.
        log: of the steps.
        evaluate: the evaluation.
        save: the checkpoints.
        stopping: says after each step whether to stop there: a signal's number, or 0.
        rhythm: when to do what.
    """
    step, signal = int(state.step), 0
    while step < rhythm.total and not evaluate.is_done and not signal:
        state = take_step(state, step)
        step += 1
        signal = stopping(step)
        saves = rhythm.saves(step) or signal
        if rhythm.logs(step) or saves:
            log.flush(rhythm.logs(step))
        if rhythm.evaluates(step):
            evaluate(state, step)
        if saves:
            save(state)
            log.clock.lap()  # what evaluating and saving took is not of training
    save.wait()
    return state, signal
