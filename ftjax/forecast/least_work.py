"""The work that a method's step cannot do without, whatever the compiler makes of it."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from ml_collections import ConfigDict

from ftjax.config.load import changed
from ftjax.forecast.lowering import abstract_batch, abstract_params, abstract_recipe, architecture
from ftjax.models import kind_of
from ftjax.paths import Flat
from ftjax.training.recipe import Recipe
from ftjax.training.step import gradients


class Least:
    """FLOPs of all products of a step, with nothing computed twice.

    Gradients of frozen kernels are not among them, since no method needs them. Of causal
    attention the half that is seen counts.

    Args:
        config: of the run.
    """

    def __init__(self, config: ConfigDict) -> None:
        plain = {"remat": "none", "attention": "xla", "parts": 1, "sparse_cores": False}
        changes = [(f"model.{key}", value) for key, value in plain.items()]
        self._config = changed(config.copy_and_resolve_references(), changes)

    @cached_property
    def _recipe(self) -> Recipe:
        return abstract_recipe(self._config)

    def __call__(self, batch: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Those of a step.

        Args:
            batch: of whose shapes; None for those at the longest length.

        Returns:
            "dense": of tokens with kernels; "attention": of tokens with tokens.
        """
        recipe = self._recipe
        phase = recipe.tuned.at_step(0)
        trainable, frozen = phase.partition.split(abstract_params(recipe.tuned))
        key = jax.eval_shape(lambda: jax.random.key(0))
        if batch is None:
            batch = abstract_batch(self._config, recipe.task)
        batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}

        def grads(*inputs: Any) -> Flat:
            return gradients(recipe.loss, *inputs, parts=1, gradient=recipe.gradient)[1]

        traced = jax.make_jaxpr(grads)(trainable, frozen, batch, key)
        dense, attention = _flops(traced.jaxpr)
        if kind_of(architecture(self._config.model.path)) == "decoder":
            length = batch["input_ids"].shape[1]
            attention *= (length + 1) / (2 * length)
        return {"dense": dense, "attention": attention}

    def of_batch(self, batch: Mapping[str, Any]) -> float:
        """Those of a step on a batch of these shapes, of both kinds together."""
        return sum(self(batch).values())


def _flops(jaxpr: Jaxpr) -> np.ndarray:
    """(of products without batches, of those with)."""
    total, platforms = np.zeros(2), set()
    for line in jaxpr.eqns:
        name, params = line.primitive.name, line.params
        if name == "platform_index" or (name == "clamp" and platforms & set(map(id, line.invars))):
            platforms |= set(map(id, line.outvars))
        if name == "dot_general":
            (summed, _), (batches, _) = params["dimension_numbers"]
            inner = np.prod([line.invars[0].aval.shape[i] for i in summed])
            total[int(bool(batches))] += 2.0 * inner * np.prod(line.outvars[0].aval.shape)
        elif name.startswith("ragged_dot"):
            total[0] += 2.0 * np.prod(line.outvars[0].aval.shape) * line.invars[0].aval.shape[-1]
        else:
            inside = [_flops(body) for value in params.values() for body in _bodies(value)]
            if inside:
                # Of programs for several platforms the one of least work says what is needed.
                least = platforms & set(map(id, line.invars))
                many = (min if least else max)(inside, key=sum) if name == "cond" else sum(inside)
                total += params.get("length", 1) * many if name == "scan" else many
    return total


def _bodies(value: Any) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    return [body for item in value for body in _bodies(item)] if isinstance(value, tuple) else []
