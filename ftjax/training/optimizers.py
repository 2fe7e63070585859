"""The optimizer of what trains, and learning-rate schedules by name."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftjax.errors import UserError, nearest
from ftjax.optimizers import create
from ftjax.optimizers.base import Schedule
from ftjax.paths import Flat

GroupOptimizer = Callable[..., optax.GradientTransformation]  # as `plain`
SCHEDULES = ("linear", "cosine", "constant", "inverse_sqrt")


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


def plain(
    group: str,
    core: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    steps: int,
) -> optax.GradientTransformation:
    """A group's optimizer where the method leaves it as it is."""
    return optax.chain(core, rest)


def make_optimizer(
    settings: Mapping[str, Any],
    labels: Mapping[str, str],
    rate: Schedule,
    own: GroupOptimizer = plain,
    rates: Mapping[str, Any] = MappingProxyType({}),
    steps: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer over trainable leaves: one transformation a group of the partition.

    Args:
        settings: the `optimizer` section of the configuration.
        labels: group of each trainable path; frozen paths are not among them, so that they have
            no state, no decay, and no part in any norm.
        rate: learning rate by step.
        own: gives a group's optimizer, see `Tuned.optimizer`.
        rates: what the learning rates of some paths are multiplied by.
        steps: of the whole run.
    """

    optimizer = create(settings)

    def group(name: str) -> optax.GradientTransformation:
        rest = optax.chain(optimizer.rest(rate), _scaled(rates))
        return own(name, optimizer.core(rate), rest, steps)

    groups: Iterable[str] = sorted(set(labels.values()))
    return optax.with_extra_args_support(
        optax.multi_transform({name: group(name) for name in groups}, dict(labels))
    )


def _scaled(rates: Mapping[str, Any]) -> optax.GradientTransformation:
    def scaled(path: tuple, update: jax.Array) -> jax.Array:
        return update * rates[path[0].key] if path[0].key in rates else update

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates))


def carry(old: Any, new: Any, step: jax.Array | int) -> Any:
    """The optimizer state `new`, just made, with what `old` has of the same leaves.

    Leaves that train anew start their moments here; the learning rate goes on from `step`.
    """
    leaves = dict(jax.tree_util.tree_leaves_with_path(old))
    return at_step(
        jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(path, leaf), new), step
    )


def at_step(state: Any, step: jax.Array | int) -> Any:
    """An optimizer state whose learning rates are those of `step`.

    They go by the steps of the run, of which some are skipped, or before a leaf trains; moments
    count their own updates, by which Adam corrects them.
    """

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def placed(node: Any) -> Any:
        if not is_schedule(node):
            return node
        return optax.ScaleByScheduleState(jnp.array(step, node.count.dtype))

    return jax.tree.map(placed, state, is_leaf=is_schedule)


def clip(grads: Flat, norm: jax.Array, limit: float) -> Flat:
    """Scales gradients of global norm `norm` down to `limit`; 0 leaves them."""
    if not limit:
        return grads
    factor = jnp.minimum(1.0, limit / (norm + 1e-6))
    return {path: (grad * factor).astype(grad.dtype) for path, grad in grads.items()}
