"""How a configured model is trained: its optimizer and its step, in every phase."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ftjax.partition import FROZEN
from ftjax.paths import Flat
from ftjax.regularization.adversarial import Grad, Total
from ftjax.regularization.l2_sp import l2_sp
from ftjax.regularization.loss import gradient, regularized
from ftjax.training.averages import Average, equal, moving
from ftjax.training.learning_rate import peak_rate
from ftjax.training.optimizers import Schedule, make_optimizer, schedule
from ftjax.training.step import LossFn, State, make_step, state_shapes
from ftjax.tuned import Tuned


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
        peak = peak_rate(self.config, self.tuned)
        return schedule(settings.schedule, peak, settings.warmup, self.total)

    @cached_property
    def average(self) -> Average | None:
        """What is evaluated in the parameters' stead; None for themselves."""
        settings = self.config.train
        if settings.swa_start:
            return equal(max(round(settings.swa_start * self.total), 1), settings.swa_every)
        return moving(settings.average) if settings.average else None

    @cached_property
    def loss(self) -> LossFn:
        """Sums of losses and weights of a batch, regularized."""
        return regularized(self.config, self.task, self.tuned)

    @cached_property
    def gradient(self) -> Callable[[Total], Grad]:
        """How the loss is differentiated."""
        return gradient(self.config.regularization, self.tuned.base.words_shape[1])

    def penalty(self, params: Flat, frozen: Flat) -> jax.Array | None:
        """What is added to the mean loss."""
        settings, tuned = self.config.regularization, self.tuned
        penalty = tuned.method.penalty(tuned.base, params)
        if settings.l2_sp or settings.l2_sp_new:
            pull = l2_sp(params, frozen, settings.l2_sp, settings.l2_sp_new)
            return pull if penalty is None else pull + penalty
        return penalty

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
        return make_optimizer(settings, labels, self.rate, phase.optimizer, self.rates, self.total)

    def state_shapes(self, trainable: Flat, mesh: Mesh, done: int) -> State:
        """The state after `done` steps as shapes in their places.

        Args:
            trainable: arrays, or their shapes.
            mesh: where they are.
            done: steps.
        """
        phase, averaged = self.phase(done), self.average is not None
        return state_shapes(trainable, self.optimizer(phase), mesh, phase.partition, averaged)

    def step(self, phase: Tuned) -> Callable:
        """The step of a phase as a pure function, not yet compiled."""
        return make_step(
            self.loss,
            self.optimizer(phase),
            self.rate,
            clip_norm=self.config.optimizer.clip_norm,
            accumulation=self.config.train.accumulation,
            gradient=self.gradient,
            penalty=self.penalty,
            active=phase.partition,
            average=self.average,
        )
