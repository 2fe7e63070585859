"""A task's loss under the configured regularizers, and how it is differentiated."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from ftjax.errors import require
from ftjax.loss import Loss
from ftjax.paths import Flat
from ftjax.regularization import changes_words
from ftjax.regularization.adversarial import Grad, Total, fgm, freelb, pgd
from ftjax.regularization.mixup import mixup, shares
from ftjax.regularization.rdrop import DIVERGENCES, of_classes, rdrop
from ftjax.regularization.words import Array, Batch, cutoff, key_of, noise
from ftjax.tuned import Tuned

Change = Callable[[Array], Array]  # of embedded words


def gradient(settings: ConfigDict, size: int) -> Callable[[Total], Grad]:
    """How a loss is differentiated by the parameters: as it is, or at adversarial words.

    Args:
        settings: the `regularization` section.
        size: features of embedded words.
    """
    ball = {"size": size, "epsilon": settings.epsilon}
    steps = {"step_size": settings.step_size, "steps": settings.steps}
    return {
        "none": partial(jax.grad, has_aux=True),
        "fgm": partial(fgm, **ball),
        "pgd": partial(pgd, **ball, **steps),
        "freelb": partial(freelb, **ball, **steps),
    }[settings.adversarial]


def regularized(config: ConfigDict, task: Any, tuned: Tuned) -> Callable[..., Loss]:
    """The loss (params, batch, key, δ if any) → `Loss` of a task, where δ moves embedded words.

    Raises:
        UserError: a regularizer means nothing for this task, model or batching.
    """
    settings, score = config.regularization, partial(task.loss, train=True)
    divergence = DIVERGENCES.get(task.problem_type, of_classes if tuned.base.of_words else None)
    _refuse(config, task, tuned, divergence)

    def loss(params: Flat, batch: Batch, key: Array | None, shift: Array | None = None) -> Loss:
        share = shares(key_of("mixup", key), batch, settings.mixup) if settings.mixup else None

        def model(key: Array | None, inputs: Batch, mixed: Change = lambda x: x) -> Any:
            def words(x: Array) -> Array:
                return _words(settings, batch, key, shift, mixed(x)).astype(x.dtype)

            return tuned.apply(
                params, inputs, key, words=words if changes_words(settings) else None
            )

        def once(wrap: Callable[[Callable], Callable], key: Array | None) -> Loss:
            apply = wrap(partial(model, key))
            return score(apply, batch) if share is None else mixup(score, apply, batch, share)

        if settings.rdrop:
            return rdrop(once, key, settings.rdrop, divergence)
        return once(lambda model: model, key)

    return loss


def _words(
    settings: ConfigDict, batch: Batch, key: Array | None, shift: Array | None, x: Array
) -> Array:
    """Embedded words x (rows, length, d) as a pass has them."""
    if settings.cutoff:
        x = cutoff(key_of("cutoff", key), x, settings.cutoff)
    if settings.neftune:
        x = x + noise(key_of("neftune", key), batch, x.shape[-1], settings.neftune)
    return x if shift is None else x + shift


def _refuse(config: ConfigDict, task: Any, tuned: Tuned, divergence: Any) -> None:
    """Raises UserError for a regularizer that means nothing here."""
    settings, name = config.regularization, f"task.name={config.task.name}"
    if settings.rdrop:
        problem = f"regularization.rdrop: {name} has no divergence of two outputs"
        require(divergence is not None, problem)
    if settings.mixup:
        key = f"regularization.mixup={settings.mixup}"
        require(task.problem_type is not None, f"{key} mixes answers of texts, not those of {name}")
        problem = f"{key} mixes rows of one text each; set data.batching=bucket"
        require(config.data.batching != "pack", problem)
        problem = f"{key}: an encoder-decoder's classifier reads the text twice, once unmixed"
        require(not tuned.base.two_sided, problem)
