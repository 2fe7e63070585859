"""What must hold for every method; each raises AssertionError where it does not."""

import math
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np

from ftjax import methods
from ftjax.errors import UserError
from ftjax.options import options
from ftjax.parallel.mesh import make_mesh
from ftjax.paths import Flat
from ftjax.testing.bases import HEAD, started
from ftjax.testing.trial import ROWS, STEPS, Trial, cross_entropy, stacked, train, typed
from ftjax.workdir.checkpoints import Checkpoints

EFFECT = 1e-4  # of what changes outputs, at least


def every_option_says_what_it_means(trial: Trial) -> None:
    known = options(methods.find(trial.name))
    lacking = [name for name, option in known.items() if not option.meaning]
    assert not lacking, f"{lacking}: say what they mean under Attributes of the docstring"


def step_0_is_the_base_model(trial: Trial) -> None:
    """Exactly, unless no options of the method are the identity."""
    difference = np.abs(trial.outputs(trial.params) - trial.plain(trial.params)).max()
    if trial.model.method.identity:
        assert difference <= trial.rounding, f"outputs differ by {difference:.2g} at step 0"
    else:
        assert difference > EFFECT, "it is the identity, and says that it is not"


def another_init_is_not(trial: Trial) -> None:
    """So that the step before cannot be the base model for want of any effect."""
    other = trial.model.method.non_identity
    if not other:  # a selection, or soft prompts: shown above, or below when moved
        adds = set(trial.model.shapes) != set(trial.model.base.shapes)
        assert not adds or not trial.model.method.identity, "non_identity names no options"
        return
    model = trial.build(**other)
    params = started(model, trial.base)
    outputs = jax.jit(lambda params, batch: model.apply(params, batch))(params, trial.batch)
    assert np.abs(outputs - trial.plain(params)).max() > EFFECT, "non_identity is the identity"


def what_trains_moves_and_what_is_frozen_has_nothing(trial: Trial) -> None:
    """No gradient, no decay, and no numbers of optimizer state."""
    run = trial.trained
    assert run.active, "nothing trains"
    for path, leaf in run.state.params.items():
        moved = bool(np.any(np.asarray(leaf) != trial.params[path]))
        assert moved == (path in run.active), f"{path}: moved is {moved}"
        assert leaf.dtype == jnp.float32, f"{path} is {leaf.dtype}"
    for path, leaf in run.frozen.items():
        jax.tree.map(np.testing.assert_array_equal, leaf, trial.params[path])
    expected = sum(trial.moments(path, run.state.params[path].shape) for path in run.active)
    assert run.moments == expected, f"{run.moments:,} numbers of optimizer state, not {expected:,}"


def merged_is_a_plain_model_or_an_error(trial: Trial) -> None:
    try:
        merged = trial.model.method.merge(trial.model.base, trial.moved)
    except UserError as error:
        assert "cannot be merged" in str(error)
        return
    assert set(merged) == set(trial.model.base.shapes)
    expected = trial.outputs(trial.moved)
    np.testing.assert_allclose(trial.plain(merged), expected, atol=trial.merged_rounding)


def disabled_is_the_base_model(trial: Trial) -> None:
    disabled = jax.jit(lambda params, batch: trial.model.apply(params, batch, adapted=False))
    expected = trial.plain(trial.moved)
    near = max(1e-6, trial.rounding)
    np.testing.assert_allclose(disabled(trial.moved, trial.batch), expected, atol=near)
    if set(trial.model.shapes) != set(trial.model.base.shapes):
        assert np.abs(trial.outputs(trial.moved) - expected).max() > EFFECT, "it has no effect"


def saved_and_loaded_is_equal(trial: Trial) -> None:
    """What is on disk is what trains, and no more."""
    run = trial.trained
    with TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints")
        checkpoints.save(run.state, {"progress": 1}, best_step=1)
        checkpoints.wait()
        params = checkpoints.params(STEPS, run.state.params)
        state = checkpoints.restore(STEPS, run.state)
        on_disk = sum(math.prod(x.shape) for x in jax.tree.leaves(checkpoints.shapes(STEPS)))
        checkpoints.close()
    trainable = {path for path in trial.model.shapes if trial.model.partition.is_trainable(path)}
    assert set(params) == trainable
    assert on_disk == sum(leaf.size for leaf in params.values())
    for path, leaf in run.state.params.items():
        np.testing.assert_array_equal(params[path], leaf)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(run.state), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)
    expected = trial.outputs({**run.frozen, **run.state.params})
    np.testing.assert_array_equal(trial.outputs({**run.frozen, **params}), expected)


def bfloat16_models_have_float32_adapters(trial: Trial) -> None:
    """In scanned layers: the loss is finite, and gradients are of the adapters' type."""
    model = trial.build({"dtype": "bfloat16", "segments": "scan"})
    params = {p: typed(stacked(trial.params, p), model.dtype(p)) for p in model.shapes}
    trainable, frozen = model.partition.split(params)

    def loss(trainable: Flat, frozen: Flat) -> jax.Array:
        return cross_entropy(model.apply({**frozen, **trainable}, trial.batch), trial.batch).total

    value, grads = jax.jit(jax.value_and_grad(loss))(trainable, frozen)
    assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads.values())
    assert {leaf.dtype for leaf in grads.values()} == {jnp.dtype("float32")}
    kernels = [leaf for path, leaf in frozen.items() if path in model.base.shapes]
    floats = [x for x in jax.tree.leaves(kernels) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x.dtype == jnp.bfloat16 for x in kernels if hasattr(x, "dtype"))
    assert floats or not kernels


def scanned_remat_and_sharded_give_the_same_losses(trial: Trial) -> None:
    """All at once: scanned layers, rematerialization, devices on three axes where there are eight,
    and batches half of whose rows are empty."""
    assert len(set(trial.trained.losses)) == STEPS, "steps do nothing"
    model = trial.build({"segments": "scan", "remat": "full"})
    params = {path: stacked(trial.params, path) for path in model.shapes}
    divisible = jax.device_count() >= 8
    mesh = make_mesh(2, 2, 2) if divisible else make_mesh(devices=jax.devices()[:1])
    losses = train(model, params, trial.base, mesh, empty=ROWS).losses
    np.testing.assert_allclose(losses, trial.trained.losses, atol=1e-5)


def packed_equals_apart(trial: Trial) -> None:
    """Two examples in a row see nothing of each other; of models with positions to start anew."""
    if trial.base == "t5":
        return
    model = trial.build(head={**HEAD, "pooling": "mean" if trial.base == "bert" else "cls"})
    params = {path: trial.moved[path] for path in model.shapes}
    sizes, length = (5, 7), 7
    ids = np.random.default_rng(0).integers(5, 64, (2, length))
    mask = (np.arange(length) < np.array(sizes)[:, None]).astype(np.int32)
    packed = {
        "input_ids": np.concatenate([ids[0, :5], ids[1]])[None],
        "segment_ids": np.repeat([1, 2], sizes)[None],
        "position_ids": np.concatenate([np.arange(n) for n in sizes])[None],
        "starts": np.array([[0, sizes[0]]]),
    }
    apply = jax.jit(lambda params, batch: model.apply(params, batch))
    try:
        together = apply(params, packed)[0]
    except UserError as error:
        assert trial.unpacked and trial.unpacked in str(error), str(error)
        return
    assert not trial.unpacked, f"it takes packed rows, and should say {trial.unpacked!r}"
    apart = apply(params, {"input_ids": ids * mask, "attention_mask": mask})
    np.testing.assert_allclose(together, apart, atol=1e-5)


INVARIANTS: tuple[Callable[[Trial], None], ...] = (
    every_option_says_what_it_means,
    step_0_is_the_base_model,
    another_init_is_not,
    what_trains_moves_and_what_is_frozen_has_nothing,
    merged_is_a_plain_model_or_an_error,
    disabled_is_the_base_model,
    saved_and_loaded_is_equal,
    bfloat16_models_have_float32_adapters,
    scanned_remat_and_sharded_give_the_same_losses,
    packed_equals_apart,
)
