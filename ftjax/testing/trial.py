"""A method on a small model, and a few steps of it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from ftjax.loss import Loss
from ftjax.parallel.mesh import fitted, logical_axes, make_mesh, param_shardings, place_rows
from ftjax.paths import Flat, expand
from ftjax.quantization import Quantized, dequantized
from ftjax.testing.bases import HEAD, build, make_batch, plain_model, started
from ftjax.training.optimizers import make_optimizer
from ftjax.training.step import State, init_state, lower_step, make_step
from ftjax.tuned import Tuned

ADAMW = {"name": "adamw", "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
ROWS, STEPS, RATE = 16, 3, 1e-3


def two_moments(path: str, shape: tuple[int, ...]) -> int:
    """Numbers of optimizer state that Adam has of a leaf."""
    return 2 * math.prod(shape)


@dataclass(frozen=True)
class Trial:
    """A method on a small random model.

    Attributes:
        name: of the method, also dotted.
        options: of the method, which fit the model.
        base: of `BASES`.
        rounding: how far outputs at step 0 may be from the base model's.
        merged_rounding: how far the merged model's may be from the adapted one's.
        moments: numbers of optimizer state of a leaf that trains, by its path and shape.
        unpacked: what the method says of packed rows where it cannot tell their examples.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    base: str = "bert"
    rounding: float = 0.0
    merged_rounding: float = 1e-4
    moments: Callable[[str, tuple[int, ...]], int] = two_moments
    unpacked: str = ""

    def build(
        self,
        settings: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] = HEAD,
        **more: Any,
    ) -> Tuned:
        """The model under the method, with settings of the model and more options."""
        return build(self.base, {"name": self.name, **self.options, **more}, settings, head)

    @cached_property
    def model(self) -> Tuned:
        return self.build()

    @cached_property
    def params(self) -> Flat:
        return started(self.model, self.base)

    @cached_property
    def moved(self) -> Flat:
        """Parameters with every trainable leaf moved, so that the method does something."""
        random, moved = np.random.default_rng(1), dict(self.params)
        for path in filter(self.model.partition.is_trainable, moved):
            noise = random.normal(0, 0.05, moved[path].shape)
            moved[path] = moved[path] + noise.astype(np.float32)
        return moved

    @cached_property
    def batch(self) -> dict[str, np.ndarray]:
        return make_batch(self.base)

    @cached_property
    def _applied(self) -> Callable:
        return jax.jit(lambda params, batch: self.model.apply(params, batch))

    def outputs(self, params: Flat) -> np.ndarray:
        """Logits (rows, labels) of the batch."""
        return np.asarray(self._applied(jax.tree.map(np.asarray, params), self.batch))

    def plain(self, params: Flat) -> np.ndarray:
        """Logits of the base model, which is compiled once for all methods."""
        model, apply = plain_model(self.base)
        base = {path: params[path] for path in model.shapes}
        if any(isinstance(leaf, Quantized) for leaf in base.values()):
            base = jax.jit(dequantized)(base)
        return np.asarray(apply(base, self.batch))

    @cached_property
    def trained(self) -> "Trained":
        return train(self.model, self.params, self.base, make_mesh(devices=jax.devices()[:1]))


@dataclass(frozen=True)
class Trained:
    """What a few steps came to.

    Attributes:
        state: after them.
        frozen: what did not train.
        active: paths of what did.
        moments: numbers of the optimizer's state before them.
        losses: of each step.
    """

    state: State
    frozen: Flat
    active: frozenset[str]
    moments: int
    losses: list[float]


def cross_entropy(logits: jax.Array, batch: Mapping[str, Any]) -> Loss:
    """Of each row's label."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return Loss((losses * batch["weights"]).sum(), batch["weights"].sum())


def train(model: Tuned, params: Flat, base: str, mesh: Mesh, empty: int = 0) -> Trained:
    """Takes a few steps by AdamW from given parameters.

    Args:
        model: of the base.
        params: of the model.
        base: of `BASES`.
        mesh: where it trains.
        empty: rows without an example that each batch has besides.
    """
    batch = {name: _padded(x, empty) for name, x in make_batch(base, ROWS).items()}
    shardings = param_shardings(model.shapes, model.axes, mesh)
    placed = {path: _placed(model, path, params[path], shardings[path]) for path in params}
    trainable, frozen = model.partition.split(placed)
    phase = model.at_step(0).partition
    active = frozenset(path for path in trainable if phase.is_trainable(path))
    labels = {path: phase.labels[path] for path in active}

    def loss(params: Flat, batch: Mapping[str, jax.Array], key: jax.Array) -> Loss:
        return cross_entropy(model.apply(params, batch), batch)

    def penalty(params: Flat, frozen: Flat) -> Any:
        return model.method.penalty(model.base, params)

    def rate(step: Any) -> float:
        return RATE

    optimizer = make_optimizer(ADAMW, labels, rate, model.optimizer, model.rates(), STEPS)
    state = init_state(jax.tree.map(jnp.copy, trainable), optimizer, 0, mesh, phase)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    ways = {"clip_norm": 1.0, "accumulation": 1, "penalty": penalty, "active": phase}
    step = make_step(loss, optimizer, rate, **ways)
    rows = place_rows(mesh, batch, ROWS + empty)
    with logical_axes(mesh):
        program = lower_step(step, state, frozen, rows, mesh).compile()
    losses = []
    for _ in range(STEPS):
        state, metrics = program(state, frozen, rows)
        losses.append(float(metrics["loss"]))
    return Trained(state, frozen, active, moments, losses)


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    return np.pad(rows, ((0, count), *((0, 0),) * (rows.ndim - 1)))


def _placed(model: Tuned, path: str, leaf: Any, sharding: NamedSharding) -> Any:
    """A parameter, or each part of a quantized one, of its type and in its place."""
    leaf, ndim = typed(leaf, model.dtype(path)), model.shapes[path].ndim
    return jax.tree.map(lambda x: jax.device_put(x, fitted(sharding, ndim, x.shape)), leaf)


def typed(leaf: Any, dtype: Any) -> Any:
    """A parameter of a type, unless it is quantized."""
    return leaf.astype(dtype) if isinstance(leaf, np.ndarray) else leaf


def stacked(params: Flat, path: str) -> Any:
    """A parameter of scanned layers, from each layer's."""
    if expand(path) == [path]:
        return params[path]
    return jax.tree.map(lambda *layers: np.stack(layers), *(params[p] for p in expand(path)))
