"""What a train step costs, read off the compiled program: nothing is loaded or run."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax.loss import Loss
from ftjax.partition import FROZEN
from ftjax.training.optimizers import make_optimizer
from ftjax.training.step import State, make_step
from ftjax.tuned import Tuned

ADAMW = {"name": "adamw", "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}


def cross_entropy(logits: jax.Array, batch: Mapping[str, jax.Array]) -> Loss:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return Loss((losses * batch["weights"]).sum(), batch["weights"].sum())


def abstract_params(tuned: Tuned) -> dict[str, Any]:
    """Every parameter as it is stored: trainable ones in float32, frozen ones as the method keeps
    them."""

    def stored(path: str) -> Any:
        leaf = jax.ShapeDtypeStruct(tuned.shapes[path].shape, tuned.dtype(path))
        return tuned.method.stored(tuned.base, path, leaf) if path in tuned.base.shapes else leaf

    return {path: stored(path) for path in tuned.shapes}


def compiled_step(
    tuned: Tuned,
    rows: int = 8,
    length: int = 128,
    steps: int = 1000,
    options: Mapping[str, Any] | None = None,
) -> tuple[jax.stages.Compiled, State]:
    """AdamW's step of a classifier with the gradient norm logged, and its abstract state.

    Args:
        tuned: the model under its method.
        rows, length: of the batch.
        steps: of the whole run.
        options: of the compiler.
    """
    phase = tuned.at_step(0).partition
    trainable, frozen = tuned.partition.split(abstract_params(tuned))
    labels = {path: group for path, group in phase.labels.items() if group != FROZEN}

    def rate(step: Any) -> float:
        return 1e-4

    def loss_fn(params: Mapping[str, Any], batch: Mapping[str, Any], key: Any) -> Loss:
        return cross_entropy(tuned.apply(params, batch, key), batch)

    optimizer = make_optimizer(ADAMW, labels, rate, tuned.method, tuned.rates(), steps)
    penalty = tuned.method.penalty
    step = make_step(
        loss_fn, optimizer, rate, clip_norm=1.0, accumulation=1, penalty=penalty, active=phase
    )

    def make(params: Mapping[str, Any]) -> State:
        moments = optimizer.init(phase.split(params)[0])
        return State(jnp.zeros((), jnp.int32), dict(params), moments, jax.random.key(0))

    state = jax.eval_shape(make, trainable)
    shapes = {"input_ids": (rows, length), "attention_mask": (rows, length), "labels": (rows,)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
    batch["weights"] = jax.ShapeDtypeStruct((rows,), jnp.float32)
    lowered = jax.jit(step, donate_argnums=0).lower(state, frozen, batch)
    return lowered.compile(compiler_options=dict(options or {})), state


def nbytes(tree: Any) -> int:
    """Bytes of the arrays of a tree, also of an abstract one; keys are not counted."""
    return sum(
        int(np.prod(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )
