"""How a configured model is trained: its optimizer and its step, in every phase."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from ftjax.loss import Loss
from ftjax.partition import FROZEN
from ftjax.paths import Flat
from ftjax.training.optimizers import Schedule, make_optimizer, schedule
from ftjax.training.step import make_step
from ftjax.tuned import Tuned


def fitted(task: Any, arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Any:
    """A task whose loss depends on how frequent labels are, made for the rows that it trains on.

    Args:
        task: any.
        arrays: of the training split; of a stream, those of its first window.
        names: of the labels.
    """
    return task.fitted(arrays["labels"], names) if hasattr(task, "fitted") else task


@dataclass(frozen=True)
class Recipe:
    """What a configuration says of training, with the model and the task that it is for.

    Attributes:
        total: steps of the whole run.
    """

    config: ConfigDict
    task: Any
    tuned: Tuned
    total: int

    @cached_property
    def rate(self) -> Schedule:
        """Learning rate by step."""
        settings = self.config.optimizer
        return schedule(settings.schedule, settings.learning_rate, settings.warmup, self.total)

    @cached_property
    def rates(self) -> dict[str, Any]:
        return self.tuned.rates()

    def phase(self, done: int) -> Tuned:
        """What the last of `done` steps was made by, which the optimizer state is of."""
        return self.tuned.at_step(max(done - 1, 0))

    def optimizer(self, phase: Tuned) -> optax.GradientTransformationExtraArgs:
        """The optimizer of what trains in a phase."""
        labels = {path: g for path, g in phase.partition.labels.items() if g != FROZEN}
        settings = self.config.optimizer
        return make_optimizer(settings, labels, self.rate, phase.method, self.rates, self.total)

    def step(self, phase: Tuned) -> Callable:
        """The step of a phase as a pure function, not yet compiled."""

        def loss_fn(params: Flat, batch: Mapping[str, jax.Array], key: Any) -> Loss:
            apply = partial(self.tuned.apply, params, key=key)
            return self.task.loss(apply, batch, train=True)

        return make_step(
            loss_fn,
            self.optimizer(phase),
            self.rate,
            clip_norm=self.config.optimizer.clip_norm,
            accumulation=self.config.train.accumulation,
            penalty=self.tuned.method.penalty,
            active=phase.partition,
            decay=self.config.train.average,
        )
