"""What must hold for every method: a new one is tested by registering it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftjax import methods, tuned
from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.parallel.mesh import logical_axes, make_mesh, place_rows
from ftjax.paths import expand
from ftjax.training.checkpoints import Checkpoints
from ftjax.training.optimizers import make_optimizer
from ftjax.training.step import compile_step, init_state, make_step
from tests.conftest import HEAD, build, make_batch, perturbed

TRAINING = [name for name in methods.METHODS if methods.find(name).trains]
ADDING = [name for name in TRAINING if methods.find(name).non_identity]
OPTIMIZER = {"name": "adamw", "weight_decay": 0.01, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}


def cross_entropy(logits, batch):
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return Loss((losses * batch["weights"]).sum(), batch["weights"].sum())


class Trained:
    """A few steps of a method, on a mesh."""

    def __init__(self, folder, name, mesh, model=None, params=None, steps=3, drop=True):
        self.model = build(folder, {"name": name}, model)
        if params is None:
            params, _ = tuned.load(folder, self.model, mesh, jax.random.key(0))
        else:
            params = placed(self.model, params, mesh)
        self.before, batch = params, make_batch(16)
        trainable, frozen = self.model.partition.split(params)
        self.before = {path: np.asarray(leaf) for path, leaf in params.items()}
        labels = {path: self.model.partition.labels[path] for path in trainable}

        def loss_fn(params, batch, key):
            return cross_entropy(self.model.apply(params, batch, key if drop else None), batch)

        def rate(step):
            return 1e-3

        optimizer = make_optimizer(OPTIMIZER, labels, rate)
        state = init_state(trainable, optimizer, 0, mesh)
        self.opt_state = jax.tree.map(np.asarray, state.opt_state)
        step = make_step(loss_fn, optimizer, rate, clip_norm=1.0, accumulation=1)
        batch = place_rows(mesh, batch, 16)
        with logical_axes(mesh):
            program = compile_step(step, state, frozen, batch, mesh)
        self.losses = []
        for _ in range(steps):
            state, metrics = program(state, frozen, batch)
            self.losses.append(float(metrics["loss"]))
        self.state, self.frozen = state, frozen


def placed(model, params, mesh):
    from ftjax.parallel.mesh import param_shardings

    shardings = param_shardings(model.shapes, model.axes, mesh)
    return {path: jax.device_put(params[path], shardings[path]) for path in model.shapes}


def loaded(folder, name, mesh, **hyper):
    model = build(folder, {"name": name, **hyper})
    return model, tuned.load(folder, model, mesh, jax.random.key(0))[0]


def base_outputs(folder, params, batch, mesh):
    plain = build(folder, {"name": "full"})
    return np.asarray(plain.apply({path: params[path] for path in plain.shapes}, batch))


@pytest.mark.parametrize("name", TRAINING)
def test_1_step_0_is_the_base_model(name, tiny, one_device):
    batch = make_batch()
    model, params = loaded(tiny, name, one_device)
    wanted = base_outputs(tiny, params, batch, one_device)
    np.testing.assert_array_equal(model.apply(params, batch), wanted)


@pytest.mark.parametrize("name", ADDING)
def test_1_another_init_is_not(name, tiny, one_device):
    batch = make_batch()
    model, params = loaded(tiny, name, one_device, **methods.find(name).non_identity)
    wanted = base_outputs(tiny, params, batch, one_device)
    assert np.abs(model.apply(params, batch) - wanted).max() > 1e-4


@pytest.mark.parametrize("name", TRAINING)
def test_2_3_what_trains_moves_and_what_is_frozen_has_nothing(name, tiny, one_device):
    run = Trained(tiny, name, one_device)
    for path, leaf in run.state.params.items():
        assert np.any(np.asarray(leaf) != run.before[path]), f"{path} did not move"
        assert leaf.dtype == jnp.float32
    for path, leaf in run.frozen.items():
        np.testing.assert_array_equal(leaf, run.before[path])
    sizes = sum(leaf.size for leaf in run.state.params.values())
    moments = sum(leaf.size for leaf in jax.tree.leaves(run.opt_state) if leaf.ndim)
    assert moments == 2 * sizes  # Adam's two moments of the trainable leaves, nothing else


@pytest.mark.parametrize("name", TRAINING)
def test_4_merged_is_a_plain_model_or_an_error(name, tiny, one_device):
    batch = make_batch()
    model, params = loaded(tiny, name, one_device)
    params = perturbed(params, model)
    adapted = np.asarray(model.apply(params, batch))
    try:
        merged = model.method.merge(params)
    except UserError as error:
        assert "cannot be merged" in str(error)
        return
    assert set(merged) == set(model.base.shapes)
    np.testing.assert_allclose(base_outputs(tiny, merged, batch, one_device), adapted, atol=1e-4)


@pytest.mark.parametrize("name", TRAINING)
def test_5_disabled_is_the_base_model(name, tiny, one_device):
    batch = make_batch()
    model, params = loaded(tiny, name, one_device)
    params = perturbed(params, model)
    wanted = base_outputs(tiny, params, batch, one_device)
    if name in ADDING:
        assert np.abs(model.apply(params, batch) - wanted).max() > 1e-4
    np.testing.assert_allclose(model.apply(params, batch, adapted=False), wanted, atol=1e-6)


@pytest.mark.parametrize("name", TRAINING)
def test_6_saved_and_loaded(name, tiny, one_device, tmp_path):
    run = Trained(tiny, name, one_device, steps=1)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(run.state, {"progress": 1}, best_step=1)
    checkpoints.wait()
    params = checkpoints.params(1, run.state.params)
    state = checkpoints.restore(1, run.state)
    assert set(params) == {p for p in run.model.shapes if run.model.partition.is_trainable(p)}
    for path, leaf in run.state.params.items():
        np.testing.assert_array_equal(params[path], leaf)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(run.state), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)
    stored = checkpoints._manager.item_metadata(1)["params"]
    on_disk = sum(
        np.prod(leaf.shape)
        for leaf in jax.tree.leaves(dict(stored.tree if hasattr(stored, "tree") else stored))
    )
    assert on_disk == sum(leaf.size for leaf in params.values())
    batch = make_batch()
    wanted = run.model.apply({**run.frozen, **run.state.params}, batch)
    np.testing.assert_array_equal(run.model.apply({**run.frozen, **params}, batch), wanted)
    checkpoints.close()


BAD = {
    "rank": [0, -1, 10_000],
    "targets": [("nonsense",), "quer(y", ("query", "valeu")],
    "reduction": [0, 10_000],
    "k": [0, 99, -99],
    "dropout": [1.0],
    "init": ["nonsense"],
    "activation": ["nonsense"],
}
CASES = [
    (name, key, value)
    for name in TRAINING
    for key in methods.hyperparameters(name)
    for value in BAD.get(key, [])
]


@pytest.mark.parametrize(("name", "key", "value"), CASES)
def test_7_bad_hyperparameters_are_named(name, key, value, tiny):
    with pytest.raises(UserError, match=rf"method\.{key}"):
        build(tiny, {"name": name, key: value})


@pytest.mark.parametrize("name", TRAINING)
def test_8_bfloat16_base_under_float32_adapters(name, tiny, one_device):
    run = Trained(tiny, name, one_device, {"dtype": "bfloat16"})
    assert np.isfinite(run.losses).all()
    assert {leaf.dtype for leaf in run.state.params.values()} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in run.frozen.values()} <= {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("name", TRAINING)
def test_9_scanned_remat_and_sharded_give_the_same_losses(name, tiny, one_device):
    plain = Trained(tiny, name, one_device, drop=False)
    assert len(set(plain.losses)) == 3  # the steps do something
    sharded = Trained(tiny, name, make_mesh(2, 2, 2), params=plain.before, drop=False)
    np.testing.assert_allclose(sharded.losses, plain.losses, atol=1e-5)
    scanned = build(tiny, {"name": name}, {"segments": "scan"})
    params = {
        path: plain.before[path]
        if expand(path)[0] == path
        else np.stack([plain.before[layer] for layer in expand(path)])
        for path in scanned.shapes
    }
    model = {"segments": "scan", "remat": "full"}
    run = Trained(tiny, name, one_device, model, params=params, drop=False)
    np.testing.assert_allclose(run.losses, plain.losses, atol=1e-5)


@pytest.mark.parametrize("name", TRAINING)
def test_9_packed_equals_apart(name, tiny, one_device):
    model = build(tiny, {"name": name}, {}, {**HEAD, "pooling": "mean"})
    params, _ = tuned.load(tiny, model, one_device, jax.random.key(0))
    params = perturbed(params, model)
    hidden = build(tiny, {"name": "full"}, {}, {}).model
    random = np.random.default_rng(0)
    parts = [random.integers(5, 64, (1, n)) for n in (5, 7)]
    packed = {
        "input_ids": np.concatenate(parts, 1),
        "segment_ids": np.repeat([1, 2], [5, 7])[None],
        "position_ids": np.concatenate([np.arange(5), np.arange(7)])[None],
    }
    from dataclasses import replace

    model = replace(model, model=hidden)
    apart = [model.apply(params, {"input_ids": part}) for part in parts]
    np.testing.assert_allclose(model.apply(params, packed), np.concatenate(apart, 1), atol=1e-5)
