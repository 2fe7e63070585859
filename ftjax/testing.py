"""What must hold for every method, as functions for the tests of one's own.

    @pytest.mark.parametrize("invariant", testing.INVARIANTS)
    def test_scale(invariant):
        invariant(testing.Trial("mypackage.scale:Scale"))

Each raises AssertionError where a method breaks it, on a small random model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax import methods, tuned
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.options import options
from ftjax.parallel.mesh import logical_axes, make_mesh, param_shardings, place_rows
from ftjax.paths import Flat, expand
from ftjax.pretrained import derived
from ftjax.quantization import dequantized
from ftjax.training.optimizers import make_optimizer
from ftjax.training.step import State, init_state, lower_step, make_step
from ftjax.workdir.checkpoints import Checkpoints

SIZES = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 128, "max_position_embeddings": 64, "initializer_range": 0.2}
BASES: dict[str, dict[str, Any]] = {  # a small model of each kind → its config.json
    "bert": {"model_type": "bert", **SIZES, "type_vocab_size": 2, "pad_token_id": 0},
    "llama": {
        "model_type": "llama",
        **SIZES,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
}
HEAD = {"head": "classification", "labels": 2, "pooling": "cls"}
ADAMW = {"name": "adamw", "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
ROWS, LENGTH, STEPS, RATE = 16, 12, 3, 1e-3


@dataclass(frozen=True)
class Trial:
    """A method on a small random model.

    Attributes:
        name: of the method, also dotted.
        options: of the method, which fit the model.
        base: of `BASES`.
        rounding: how far outputs of what computes the same may be from each other.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    base: str = "bert"
    rounding: float = 1e-4

    def build(self, settings: Mapping[str, Any] | None = None, **more: Any) -> tuned.Tuned:
        """The model under the method, with settings of the model and more options."""
        method = methods.create({"name": self.name, **self.options, **more})
        return build_tuned(BASES[self.base], method, settings, HEAD)

    @cached_property
    def model(self) -> tuned.Tuned:
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
        random = np.random.default_rng(0)
        mask = np.arange(LENGTH) < random.integers(4, LENGTH + 1, ROWS)[:, None]
        ids = random.integers(5, 64, (ROWS, LENGTH)) * mask
        labels, weights = random.integers(0, 2, ROWS), np.ones(ROWS, np.float32)
        mask = mask.astype(np.int32)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "weights": weights}

    def outputs(self, params: Flat, model: tuned.Tuned | None = None, **how: Any) -> np.ndarray:
        """Logits (rows, labels) of the batch."""
        model = model or self.model
        return np.asarray(jax.jit(lambda p, b: model.apply(p, b, **how))(params, self.batch))

    def plain(self, params: Flat) -> np.ndarray:
        """Logits of the base model."""
        model = plain_model(self.base)
        return self.outputs(dequantized({path: params[path] for path in model.shapes}), model)

    @cached_property
    def trained(self) -> "Trained":
        return train(self.model, self.params, self.batch)


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


@cache
def plain_model(base: str) -> tuned.Tuned:
    return build_tuned(BASES[base], methods.create({"name": "full"}), {}, HEAD)


@cache
def plain_params(base: str) -> Flat:
    """Random parameters of a base model, with biases and norms that are not trivial."""
    model, random = plain_model(base), np.random.default_rng(0)
    drawn = model.init(jax.random.key(0), list(model.shapes), dict.fromkeys(model.shapes))
    params = {path: np.array(leaf) for path, leaf in drawn.items()}
    for path in params:
        if path.endswith(("bias", "scale")):
            params[path] += random.normal(0, 0.1, params[path].shape).astype(np.float32)
    return params


def started(model: tuned.Tuned, base: str) -> Flat:
    """The base model's parameters, as the method stores them, with those that it adds."""
    shardings = param_shardings(model.shapes, model.axes, make_mesh(devices=jax.devices()[:1]))
    params = {
        path: model.method.stored(model.base, path, jnp.asarray(leaf))
        for path, leaf in plain_params(base).items()
    }
    key = jax.random.key(0)
    params |= model.init(key, [path for path in model.shapes if path not in params], shardings)
    params |= derived(model, params, key, shardings, Path())
    return {path: jax.tree.map(np.asarray, leaf) for path, leaf in params.items()}


def train(model: tuned.Tuned, params: Flat, batch: Mapping[str, np.ndarray]) -> Trained:
    """Takes a few steps by AdamW from given parameters."""
    mesh = make_mesh(devices=jax.devices()[:1])
    placed = {}
    for path, leaf in params.items():
        dtype = model.dtype(path)
        placed[path] = jnp.asarray(leaf, dtype) if isinstance(leaf, np.ndarray) else leaf
    trainable, frozen = model.partition.split(placed)
    phase = model.at_step(0).partition
    active = frozenset(path for path in trainable if phase.is_trainable(path))
    labels = {path: phase.labels[path] for path in active}

    def loss(params: Flat, batch: Mapping[str, jax.Array], key: jax.Array) -> Loss:
        logits, weights = model.apply(params, batch), batch["weights"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return Loss((losses * weights).sum(), weights.sum())

    def rate(step: Any) -> float:
        return RATE

    optimizer = make_optimizer(ADAMW, labels, rate, model.optimizer, model.rates(), STEPS)
    state = init_state(jax.tree.map(jnp.copy, trainable), optimizer, 0, mesh, phase)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)

    def penalty(params: Flat, frozen: Flat) -> Any:
        return model.method.penalty(model.base, params)

    ways = {"clip_norm": 1.0, "accumulation": 1, "penalty": penalty, "active": phase}
    step = make_step(loss, optimizer, rate, **ways)
    rows = place_rows(mesh, batch, ROWS)
    with logical_axes(mesh):
        program = lower_step(step, state, frozen, rows, mesh).compile()
    losses = []
    for _ in range(STEPS):
        state, metrics = program(state, frozen, rows)
        losses.append(float(metrics["loss"]))
    return Trained(state, frozen, active, moments, losses)


def every_option_says_what_it_means(trial: Trial) -> None:
    known = options(methods.find(trial.name))
    lacking = [name for name, option in known.items() if not option.meaning]
    assert not lacking, f"{lacking}: say what they mean under Attributes of the docstring"


def step_0_is_the_base_model(trial: Trial) -> None:
    """To rounding, unless no options of the method are the identity."""
    difference = np.abs(trial.outputs(trial.params) - trial.plain(trial.params)).max()
    if trial.model.method.identity:
        assert difference <= trial.rounding, f"outputs differ by {difference:.2g} at step 0"
    else:
        assert difference > trial.rounding, "it is the identity, and says that it is not"


def another_init_is_not(trial: Trial) -> None:
    """So that the step before cannot be the base model for want of any effect."""
    other = trial.model.method.non_identity
    if not other:
        adds = set(trial.model.shapes) != set(trial.model.base.shapes)
        assert not adds or not trial.model.method.identity, "non_identity names no options"
        return
    model = trial.build(**other)
    params = started(model, trial.base)
    assert np.abs(trial.outputs(params, model) - trial.plain(params)).max() > trial.rounding


def what_trains_moves_and_what_is_frozen_has_nothing(trial: Trial) -> None:
    """Two moments of a leaf that trains, and nothing of others; of a method with an optimizer of
    its own, whatever that keeps."""
    run = trial.trained
    assert run.active, "nothing trains"
    for path, leaf in run.state.params.items():
        moved = bool(np.any(np.asarray(leaf) != trial.params[path]))
        assert moved == (path in run.active), f"{path}: moved is {moved}"
        assert leaf.dtype == jnp.float32, f"{path} is {leaf.dtype}"
    for path, leaf in run.frozen.items():
        jax.tree.map(np.testing.assert_array_equal, leaf, trial.params[path])
    if type(trial.model.method).optimizer is methods.find("full").optimizer:
        wanted = 2 * sum(run.state.params[path].size for path in run.active)
        assert run.moments == wanted, f"{run.moments:,} numbers of optimizer state, not {wanted:,}"


def merged_is_a_plain_model_or_an_error(trial: Trial) -> None:
    try:
        merged = trial.model.method.merge(trial.model.base, trial.moved)
    except UserError as error:
        assert "cannot be merged" in str(error)
        return
    assert set(merged) == set(trial.model.base.shapes)
    wanted = trial.outputs(trial.moved)
    np.testing.assert_allclose(trial.plain(merged), wanted, atol=trial.rounding)


def disabled_is_the_base_model(trial: Trial) -> None:
    disabled, wanted = trial.outputs(trial.moved, adapted=False), trial.plain(trial.moved)
    np.testing.assert_allclose(disabled, wanted, atol=1e-6)


def saved_and_loaded_is_equal(trial: Trial) -> None:
    run = trial.trained
    with TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints")
        checkpoints.save(run.state, {"progress": 1}, best_step=1)
        checkpoints.wait()
        params = checkpoints.params(STEPS, run.state.params)
        checkpoints.close()
    trainable = {path for path in trial.model.shapes if trial.model.partition.is_trainable(path)}
    assert set(params) == trainable
    for path, leaf in run.state.params.items():
        np.testing.assert_array_equal(params[path], leaf)


def bfloat16_models_have_float32_adapters(trial: Trial) -> None:
    model = trial.build({"dtype": "bfloat16"})
    run = train(model, trial.params, trial.batch)
    assert np.isfinite(run.losses).all()
    assert {leaf.dtype for leaf in run.state.params.values()} == {jnp.dtype("float32")}


def scanned_and_remat_give_the_same_losses(trial: Trial) -> None:
    assert len(set(trial.trained.losses)) == STEPS, "steps do nothing"
    model = trial.build({"segments": "scan", "remat": "full"})
    params = {path: _stacked(trial.params, path) for path in model.shapes}
    losses = train(model, params, trial.batch).losses
    np.testing.assert_allclose(losses, trial.trained.losses, atol=1e-5)


def _stacked(params: Flat, path: str) -> Any:
    """A parameter of scanned layers, from each layer's."""
    if expand(path) == [path]:
        return params[path]
    return jax.tree.map(lambda *layers: np.stack(layers), *(params[p] for p in expand(path)))


INVARIANTS: tuple[Callable[[Trial], None], ...] = (
    every_option_says_what_it_means,
    step_0_is_the_base_model,
    another_init_is_not,
    what_trains_moves_and_what_is_frozen_has_nothing,
    merged_is_a_plain_model_or_an_error,
    disabled_is_the_base_model,
    saved_and_loaded_is_equal,
    bfloat16_models_have_float32_adapters,
    scanned_and_remat_give_the_same_losses,
)
