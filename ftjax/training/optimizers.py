"""Optimizers and learning-rate schedules, by name."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftjax.errors import UserError, nearest
from ftjax.paths import Flat

Schedule = Callable[[Any], Any]
SCHEDULES = ("linear", "cosine", "constant", "inverse_sqrt")
OPTIMIZERS = ("adamw", "sgd", "adafactor", "lion")
NO_DECAY = r".*(bias|scale)"  # as is usual: biases and norms are not decayed


def warmup_steps(warmup: float, steps: int) -> int:
    """`warmup` below 1 is a share of the steps (rounded up), otherwise a number of steps."""
    if warmup < 0:
        raise UserError(f"optimizer.warmup={warmup} must not be negative")
    return -int(-warmup * steps // 1) if warmup < 1 else int(warmup)


def schedule(name: str, peak: float, warmup: float, steps: int) -> Schedule:
    """Learning rate by step: a linear warm-up from 0 to `peak`, then the named decay.

    `linear` and `cosine` reach 0 at `steps`; `inverse_sqrt` is peak · √(w / step) with w the
    warm-up (Vaswani et al. 2017, §5.3), at least one step.
    """
    if name not in SCHEDULES:
        raise UserError(f"optimizer.schedule={name!r} is not known{nearest(name, SCHEDULES)}")
    rise = warmup_steps(warmup, steps)
    rest = max(steps - rise, 1)
    if name == "linear":
        decay = optax.linear_schedule(peak, 0.0, rest)
    elif name == "cosine":
        decay = optax.cosine_decay_schedule(peak, rest)
    elif name == "constant":
        decay = optax.constant_schedule(peak)
    else:

        def decay(step: Any) -> Any:
            # A joined schedule also asks for steps before 0, and throws the answer away.
            return peak * jnp.sqrt(max(rise, 1) / (jnp.maximum(step, 0) + max(rise, 1)))

    if not rise:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, rise), decay], [rise])


def _not_decayed(params: Mapping[str, Any]) -> dict[str, bool]:
    return {path: not re.fullmatch(NO_DECAY, path) for path in params}


def _named(settings: Mapping[str, Any], rate: Schedule) -> optax.GradientTransformation:
    decay, name = settings["weight_decay"], settings["name"]
    if name == "adamw":
        betas = {"b1": settings["beta1"], "b2": settings["beta2"], "eps": settings["epsilon"]}
        return optax.adamw(rate, **betas, weight_decay=decay, mask=_not_decayed)
    if name == "lion":
        return optax.lion(rate, weight_decay=decay, mask=_not_decayed)
    if name == "sgd":
        decayed = optax.add_decayed_weights(decay, _not_decayed)
        return optax.chain(decayed, optax.sgd(rate, momentum=settings["momentum"] or None))
    if name == "adafactor":
        mask = _not_decayed if decay else None
        return optax.adafactor(rate, weight_decay_rate=decay or None, weight_decay_mask=mask)
    raise UserError(f"optimizer.name={name!r} is not known{nearest(name, OPTIMIZERS)}")


def make_optimizer(
    settings: Mapping[str, Any], labels: Mapping[str, str], rate: Schedule
) -> optax.GradientTransformation:
    """The optimizer over trainable leaves: one transformation a group of the partition.

    Args:
        settings: the `optimizer` section of the configuration.
        labels: group of each trainable path; frozen paths are not among them, so that they have
            no state, no decay, and no part in any norm.
        rate: learning rate by step.
    """
    groups: Iterable[str] = sorted(set(labels.values()))
    return optax.multi_transform({g: _named(settings, rate) for g in groups}, dict(labels))


def clip(grads: Flat, norm: jax.Array, limit: float) -> Flat:
    """Scales gradients of global norm `norm` down to `limit`; 0 leaves them."""
    if not limit:
        return grads
    factor = jnp.minimum(1.0, limit / (norm + 1e-6))
    return {path: grad * factor for path, grad in grads.items()}
