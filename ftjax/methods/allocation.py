"""AdaLoRA's optimizer: after each update, the least important triplets are set to zero."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ftjax.methods.method import Transform, present
from ftjax.paths import Flat


class Allocation(NamedTuple):
    """Optimizer state: steps done, smoothed importances, which triplets are kept, the moments."""

    count: jax.Array
    importance: Flat
    uncertainty: Flat
    kept: Flat
    inner: Any


@dataclass(frozen=True)
class Schedule:
    """How many triplets are kept after which step, counted from 0 (Zhang et al. 2023, eq. 12).

    Attributes:
        begin: the last step before the budget falls.
        last: the step of the last choice.
        interval: steps between two choices.
        share: of all triplets that are kept in the end.
    """

    begin: int
    last: int
    interval: int
    share: float

    def due(self, step: jax.Array) -> jax.Array:
        """Whether triplets are chosen anew."""
        between = (step > self.begin) & (step < self.last) & (step % self.interval == 0)
        return between | (step == self.last)

    def budget(self, step: jax.Array, triplets: int) -> jax.Array:
        """How many of all are kept."""
        target = round(triplets * self.share)
        left = jnp.clip(1 - (step - self.begin) / (self.last - self.begin), 0.0, 1.0)
        return (target + (triplets - target) * left**3).astype(jnp.int32)


def allocated(
    whole: Transform, schedule: Schedule, beta1: float, beta2: float
) -> optax.GradientTransformationExtraArgs:
    """`whole`, after each step of which entries of E beyond the budget are zero.

    Args:
        whole: the optimizer of all leaves lora_a, lora_b and lora_e.
        schedule: of the budget.
        beta1: smooths importances, |w g| of the updated w.
        beta2: smooths their deviations.
    """
    whole = optax.with_extra_args_support(whole)

    def init(params: Flat) -> Allocation:
        leaves = present(params)
        zeros = {path: jnp.zeros_like(x) for path, x in leaves.items()}
        masks = {path: jnp.ones_like(x, bool) for path, x in leaves.items() if is_e(path)}
        # Two trees of zeros: the state is donated, and no buffer twice.
        return Allocation(
            jnp.zeros((), jnp.int32),
            zeros,
            jax.tree.map(jnp.copy, zeros),
            masks,
            whole.init(params),
        )

    def update(
        grads: Flat, state: Allocation, params: Flat, **extra: Any
    ) -> tuple[Flat, Allocation]:
        updates, inner = whole.update(grads, state.inner, params, **extra)
        step, changes = state.count, present(updates)

        def smoothed(old: Flat, new: Callable[[str], jax.Array], beta: float) -> Flat:
            measured = step < schedule.last
            seen = {path: beta * x + (1 - beta) * new(path) for path, x in old.items()}
            return {path: jnp.where(measured, seen[path], x) for path, x in old.items()}

        raw = {path: jnp.abs((params[path] + x) * grads[path]) for path, x in changes.items()}
        importance = smoothed(state.importance, raw.get, beta1)
        deviation = {path: jnp.abs(raw[path] - x) for path, x in importance.items()}
        uncertainty = smoothed(state.uncertainty, deviation.get, beta2)
        scores = triplets({path: x * uncertainty[path] for path, x in importance.items()})
        chosen = best(scores, schedule.budget(step, sum(x.size for x in scores.values())))
        due = schedule.due(step)
        masks = {path: jnp.where(due, chosen[path], x) for path, x in state.kept.items()}
        for path, mask in masks.items():
            pruned = ~mask & (due | (step > schedule.last))
            changes[path] = jnp.where(pruned, -params[path], changes[path])
        state = Allocation(step + 1, importance, uncertainty, masks, inner)
        return {**updates, **changes}, state

    return optax.GradientTransformationExtraArgs(init, update)


def is_e(path: str) -> bool:
    """Whether a parameter is an E."""
    return path.endswith("/lora_e")


def triplets(scores: Mapping[str, jax.Array]) -> Flat:
    """Scores of elements → path of each E → scores of its triplets."""
    sums = {}
    for path in filter(is_e, scores):
        a, b = (scores[path.removesuffix("e") + name] for name in ("a", "b"))
        sums[path] = scores[path] + a.mean(-2) + b.mean(-1)
    return sums


def best(scores: Mapping[str, jax.Array], budget: jax.Array) -> Flat:
    """Which triplets are among the `budget` best of all; what ties with the first out is out."""
    ordered = jnp.sort(jnp.concatenate([x.reshape(-1) for x in scores.values()]))
    out = ordered.size - budget
    limit = jnp.where(out > 0, ordered[jnp.maximum(out - 1, 0)], -jnp.inf)
    return {path: x > limit for path, x in scores.items()}
