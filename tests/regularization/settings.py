"""Configurations with regularizers, and losses under them."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ftjax import tasks
from ftjax.config import check, default_config
from ftjax.regularization.loss import gradient, regularized
from ftjax.training.step import gradients
from ftjax.tuned import Tuned


def config_of(task: str = "classification", batching: str = "pad", **settings: Any) -> ConfigDict:
    """A configuration; `settings` are of its section `regularization`."""
    config = default_config(task=task)
    config.data.batching = batching
    config.regularization.update(settings)
    return check(config)


def loss_of(config: ConfigDict, model: Tuned) -> Any:
    return regularized(config, tasks.create(config.task), model)


def differentiated(
    config: ConfigDict, model: Tuned, params: Any, batch: Any, parts: int = 1, dropout: bool = True
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean loss and gradients by what trains, with key 0, jitted.

    Without `dropout`, passes have no key; an adversary still has.
    """
    loss, size = loss_of(config, model), model.base.words_shape[1]
    trainable, frozen = model.partition.split(params)

    def calm(params: Any, batch: Any, key: Any, *shift: Any) -> Any:
        return loss(params, batch, key if dropout else None, *shift)

    @jax.jit
    def run(trainable: Any, frozen: Any, batch: Any) -> Any:
        how = gradient(config.regularization, size)
        return gradients(calm, trainable, frozen, batch, jax.random.key(0), parts, how)

    found, grads = run(trainable, frozen, dict(batch))
    return float(found.total / found.weight), {k: np.asarray(x) for k, x in grads.items()}
