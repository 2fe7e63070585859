"""The train step: gradients of the trainable leaves only, and their update."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.parallel.collectives import OFFLOADED, has_sparse_cores
from ftjax.parallel.mesh import batch_sharding
from ftjax.partition import Partition, merge
from ftjax.paths import Flat
from ftjax.regularization.adversarial import Grad, Total
from ftjax.training.averages import Average
from ftjax.training.optimizers import Schedule, at_step, carry, clip

Batch = Mapping[str, jax.Array]


LossFn = Callable[..., Loss]  # (params, batch, dropout key, and what `Grad`s give besides)
PLAIN = partial(jax.grad, has_aux=True)


@struct.dataclass
class State:
    """What a step changes, and all that it changes.

    Attributes:
        step: number of updates done.
        params: trainable leaves, flat, float32.
        opt_state: of the trainable leaves.
        key: of the run; each step folds its number in.
        average: of `params` over the run, where one is kept.
    """

    step: jax.Array
    params: Flat
    opt_state: Any
    key: jax.Array
    average: Flat | None = None

    @property
    def best_params(self) -> Flat:
        """What is evaluated: the average, where one is kept."""
        return self.params if self.average is None else self.average


def abstract_moments(
    trainable: Flat, optimizer: optax.GradientTransformation, mesh: Mesh
) -> optax.OptState:
    """Shapes of the optimizer state, in its parameters' shardings; the rest is replicated."""
    whole = NamedSharding(mesh, PartitionSpec())

    def placed(path: tuple, leaf: Any) -> jax.ShapeDtypeStruct:
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        name = next((name for name in names if name in trainable), None)
        same = name and leaf.shape == trainable[name].shape
        return leaf.update(sharding=trainable[name].sharding if same else whole)

    return jax.tree_util.tree_map_with_path(placed, jax.eval_shape(optimizer.init, trainable))


def init_moments(
    trainable: Flat, optimizer: optax.GradientTransformation, mesh: Mesh
) -> optax.OptState:
    """Optimizer state before the first step."""
    abstract = abstract_moments(trainable, optimizer, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(optimizer.init, out_shardings=placed)(trainable)


def carried_moments(
    old: optax.OptState,
    trainable: Flat,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    step: jax.Array | int,
) -> optax.OptState:
    """The optimizer state of a phase, with what that of the phase before has of the same leaves.

    Only what that lacks is made: both states whole would be twice the moments.
    """
    abstract = abstract_moments(trainable, optimizer, mesh)
    paths = {path for path, _ in jax.tree_util.tree_leaves_with_path(old)}
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    missing = {path: leaf.sharding for path, leaf in leaves if path not in paths}

    def init(trainable: Flat) -> list[jax.Array]:
        fresh = dict(jax.tree_util.tree_leaves_with_path(optimizer.init(trainable)))
        return [fresh[path] for path in missing]

    fresh = jax.jit(init, out_shardings=list(missing.values()))(trainable)
    new = dict(zip(missing, fresh, strict=True))
    shapes = jax.tree_util.tree_map_with_path(lambda path, leaf: new.get(path, leaf), abstract)
    return carry(old, shapes, step)


def state_shapes(
    trainable: Flat,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    active: Partition | None = None,
    averaged: bool = False,
) -> State:
    """The state as shapes in their places, of which nothing is made; arguments as below."""
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for path, leaf in trainable.items()
    }
    moments = abstract_moments(active.split(shapes)[0] if active else shapes, optimizer, mesh)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    key = jax.eval_shape(lambda: jax.random.key(0)).update(sharding=whole)
    return State(step, shapes, moments, key, dict(shapes) if averaged else None)


def init_state(
    trainable: Flat,
    optimizer: optax.GradientTransformation,
    seed: int,
    mesh: Mesh,
    active: Partition | None = None,
    averaged: bool = False,
) -> State:
    """The state before the first step, each array in its sharding.

    Args:
        trainable: become the state's, and so are gone once it is donated to a step.
        optimizer: of the leaves that train.
        seed: of the run's key.
        mesh: for what is on every device.
        active: what of `trainable` trains at first; None for all.
        averaged: whether an average is kept.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    first = jax.jit(lambda: (jnp.zeros((), jnp.int32), jax.random.key(seed)), out_shardings=whole)
    step, key = first()
    moments = init_moments(active.split(trainable)[0] if active else trainable, optimizer, mesh)
    average = jax.tree.map(jnp.copy, trainable) if averaged else None
    return State(step, dict(trainable), moments, key, average)


def gradients(
    loss_fn: LossFn,
    params: Flat,
    frozen: Flat,
    batch: Batch,
    key: jax.Array,
    parts: int,
    gradient: Callable[[Total], Grad] = PLAIN,
) -> tuple[Loss, Flat]:
    """Loss and gradients of Σ losses / Σ weights over the whole batch, computed in `parts`.

    Frozen leaves are arguments, never differentiated. K parts equal one batch to rounding,
    whatever the weights of each: sums are added up and divided once. `gradient` says how sums of
    losses are differentiated.
    """

    def total(params: Flat, part: Batch, *rest: jax.Array) -> tuple[jax.Array, Loss]:
        loss = loss_fn(merge(params, frozen), part, *rest)
        return loss.total, loss

    grad = gradient(total)
    if parts == 1:
        grads, loss = grad(params, batch, key)
    else:
        # Rows are dealt out, so that each part stays spread over the mesh as the batch was.
        dealt = {k: v.reshape(-1, parts, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}

        def add(carry: Any, part: tuple) -> tuple[Any, None]:
            grads, loss = grad(params, part[1], jax.random.fold_in(key, part[0]))
            return jax.tree.map(jnp.add, carry, (grads, loss)), None

        wide = partial(jnp.zeros_like, dtype=jnp.float32)  # sums of many parts
        zero = jax.tree.map(wide, params), Loss(jnp.zeros(()), jnp.zeros(()))
        (grads, loss), _ = jax.lax.scan(add, zero, (jnp.arange(parts), dealt))
    inverse = 1.0 / loss.divisor
    return loss, {p: (grad * inverse).astype(params[p].dtype) for p, grad in grads.items()}


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformationExtraArgs,
    rate: Schedule,
    *,
    clip_norm: float,
    accumulation: int,
    gradient: Callable[[Total], Grad] = PLAIN,
    penalty: Callable[[Flat, Flat], jax.Array | None] = lambda params, frozen: None,
    active: Partition | None = None,
    average: Average | None = None,
) -> Callable[[State, Flat, Batch], tuple[State, dict[str, jax.Array]]]:
    """The pure step (state, frozen, batch) → (state, metrics).

    Args:
        loss_fn: sums of losses and weights.
        optimizer: of the leaves that train.
        rate: learning rate by step.
        clip_norm: of the gradients; 0 for none.
        accumulation: parts a batch is computed in.
        gradient: of the sum of losses, by the leaves that train.
        penalty: added to the mean loss, from the trainable and the frozen leaves.
        active: what of the state's parameters trains at this step; None for all.
        average: of the parameters over the run; None where the state keeps none.

    The gradient norm is that of the trainable leaves: a norm over all leaves would make the
    compiler compute the frozen ones' gradients. A step whose loss or norm is not finite changes
    nothing but its number, and what goes by that: schedules, and an average over the run.
    """

    def step(state: State, frozen: Flat, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        params, rest = active.split(state.params) if active else (state.params, {})
        frozen = merge(rest, frozen)
        loss, grads = gradients(loss_fn, params, frozen, batch, key, accumulation, gradient)
        if jax.eval_shape(penalty, params, frozen) is not None:
            grads = jax.tree.map(jnp.add, grads, jax.grad(penalty)(params, frozen))
        norm = optax.global_norm(grads)
        metrics = {
            "loss": loss.total / loss.divisor,
            "learning_rate": jnp.asarray(rate(state.step), jnp.float32),
            "grad_norm": norm,
        }
        finite = jnp.isfinite(loss.total) & jnp.isfinite(norm)

        def updated() -> tuple[Flat, Any]:
            clipped = clip(grads, norm, clip_norm)
            updates, opt_state = optimizer.update(clipped, state.opt_state, params, frozen=frozen)
            return optax.apply_updates(params, updates), opt_state

        # Not by `where`: parameters would be computed of the old moments again, and these be copied
        # before the new take their place.
        stepped, opt_state = jax.lax.cond(finite, updated, lambda: (params, state.opt_state))
        params = merge(stepped, rest)
        done, mean = state.step + 1, state.average
        opt_state = at_step(opt_state, done)
        if average is not None:
            mean = average(mean, params, done)
        return State(done, params, opt_state, state.key, mean), metrics

    return step


def step_options(config: ConfigDict, mesh: Mesh) -> tuple[str, ...]:
    """Options of the compiler that a configuration asks for, as "xla_name=value".

    Raises:
        UserError: the mesh's chips have no sparse cores, which are asked for.
    """
    if config.model.sparse_cores and not has_sparse_cores(mesh.devices.flat):
        kind = mesh.devices.flat[0].device_kind
        raise UserError(f"model.sparse_cores=True is for TPUs v5p and v6e, and this is a {kind}")
    offloaded = OFFLOADED if config.model.sparse_cores else ()
    return (*offloaded, *config.train.compiler)


def compiler_options(options: Sequence[str]) -> dict[str, str]:
    """`train.compiler` as JAX takes it.

    Raises:
        UserError: an option without a value.
    """
    for option in options:
        if "=" not in option.strip("="):
            raise UserError(f"train.compiler={option}: give options as xla_name=value")
    return dict(option.split("=", 1) for option in options)


def compile_step(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """A lowered step's program.

    Raises:
        UserError: the compiler does not know an option of `train.compiler`.
    """
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error) or "While setting option" in str(error):
            raise UserError(f"train.compiler: {error}") from error
        raise


def lower_step(
    step: Callable,
    state: State,
    frozen: Flat,
    batch: Batch,
    mesh: Mesh,
    options: Sequence[str] = (),
) -> jax.stages.Lowered:
    """A step ready to be compiled for a batch's shapes.

    The state is donated; the frozen leaves never are, nor are they returned.

    Args:
        batch: abstract or concrete, global shapes.
        options: of the compiler, as "xla_...=true".
    """
    placed = jax.tree.map(lambda x: x.sharding, state)
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh))
        for name, x in batch.items()
    }
    compiler = compiler_options(options) or None
    out = placed, whole
    jitted = jax.jit(step, donate_argnums=0, out_shardings=out, compiler_options=compiler)
    return jitted.lower(state, frozen, shapes)
