"""The step: what it costs, what accumulation changes, what it skips."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.config import default_config
from ftjax.errors import UserError
from ftjax.forecast.lowering import abstract_recipe, compiled
from ftjax.loss import Loss
from ftjax.parallel.mesh import make_mesh, param_shardings
from ftjax.training.averages import moving
from ftjax.training.step import (
    carried_moments,
    compile_step,
    gradients,
    init_moments,
    init_state,
    lower_step,
    make_step,
)
from tests.conftest import HEAD, build, cross_entropy, make_batch
from tests.models.random_models import quick

LAYERS = 4


def flops(name: str, folder: Path) -> float:
    """Of the compiled step of layers of BERT-base, 8 rows of 128 tokens, gradient norm logged."""
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bert", "num_hidden_layers": LAYERS})
    )
    config = default_config(name)
    config.model.path, config.train.batch_size = str(folder), 8
    program, _ = compiled(abstract_recipe(config), make_mesh(devices=jax.devices()[:1]))
    return program.cost_analysis()["flops"]


def test_a_frozen_base_costs_no_weight_gradients(tmp_path):
    full = flops("full", tmp_path)
    # A sixth of a forward and backward pass is the least that full could be under 6·N·D.
    tokens, weights = 8 * 128, LAYERS * 7_077_888
    assert full > 0.8 * 6 * tokens * weights
    assert flops("lora", tmp_path) <= 0.72 * full
    assert flops("head", tmp_path) <= 0.36 * full


@pytest.fixture(scope="module")
def quiet(shallow, one_device):
    """The shallow model without dropout, its parameters and a loss."""
    model = build(shallow, {"name": "full"})
    params, _ = pretrained.load(shallow, model, one_device, jax.random.key(0))

    def loss_fn(params, batch, key):
        return cross_entropy(model.apply(params, batch), batch)

    return params, loss_fn


def test_the_average_by_hand(quiet, one_device):
    """After three steps of gradient descent with a decay of 0.5, which weigh 1, 2 and 4."""
    params, loss_fn = quiet
    batch = {name: jnp.asarray(x) for name, x in make_batch(8).items()}
    optimizer = optax.with_extra_args_support(optax.sgd(0.1))
    kept = {"clip_norm": 0.0, "accumulation": 1, "average": moving(0.5)}
    step = quick(make_step(loss_fn, optimizer, lambda _: 0.1, **kept))
    state = init_state(params, optimizer, 0, one_device, averaged=True)
    wanted = dict.fromkeys(params, 0.0)
    for weight in (1, 2, 4):
        state, _ = step(state, {}, batch)
        wanted = {path: sum + weight / 7 * state.params[path] for path, sum in wanted.items()}
    for path, leaf in wanted.items():
        np.testing.assert_allclose(state.average[path], leaf, rtol=1e-5, atol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing(quiet, one_device):
    params, loss_fn = quiet
    batch = {name: jnp.asarray(x) for name, x in make_batch(8).items()}
    optimizer = optax.with_extra_args_support(optax.adam(0.1))
    step = quick(make_step(loss_fn, optimizer, lambda _: 0.1, clip_norm=1.0, accumulation=1))
    state = init_state(params, optimizer, 0, one_device)
    after, metrics = step(state, {}, batch | {"weights": jnp.full(8, jnp.inf)})
    assert not np.isfinite(metrics["grad_norm"]) and int(after.step) == 1
    jax.tree.map(
        np.testing.assert_array_equal,
        (after.params, after.opt_state),
        (state.params, state.opt_state),
    )


@pytest.mark.parametrize(
    ("total", "gradient"), [(np.inf, 1.0), (0.0, np.inf)], ids=["the loss", "its gradient"]
)
def test_what_alone_is_not_finite_skips_a_step(total, gradient, one_device):
    """a + ∞, of gradient 1, and √a at 0, of gradient ∞."""

    def loss_fn(params, batch, key):
        a = params["a"]
        return Loss(jnp.sqrt(a) if total == 0 else a + batch["away"].sum(), jnp.ones(()))

    optimizer = optax.with_extra_args_support(optax.sgd(0.1))
    step = make_step(loss_fn, optimizer, lambda _: 0.1, clip_norm=0.0, accumulation=1)
    state = init_state({"a": jnp.zeros(())}, optimizer, 0, one_device)
    after, metrics = step(state, {}, {"away": jnp.full(2, np.inf)})
    assert (metrics["loss"], metrics["grad_norm"]) == (total, gradient)
    assert int(after.step) == 1 and float(after.params["a"]) == 0


def test_a_step_is_given_its_state_and_nothing_else(one_device):
    """Whose memory it may take; the frozen leaves and the batch are for the steps after it, too."""
    optimizer = optax.with_extra_args_support(optax.adam(0.1))

    def loss_fn(params, batch, key):
        return Loss((params["a"] * batch["x"] + params["b"]).sum(), batch["x"].sum())

    step = make_step(loss_fn, optimizer, lambda _: 0.1, clip_norm=1.0, accumulation=1)
    state = init_state({"a": jnp.zeros(())}, optimizer, 0, one_device)
    batch = {"x": jnp.ones(2)}
    lowered = lower_step(step, state, {"b": jnp.zeros(())}, batch, one_device)
    donated = [{leaf.donated for leaf in jax.tree.leaves(each)} for each in lowered.args_info[0]]
    assert donated == [{True}, {False}, {False}]


def test_moments_take_the_place_of_the_old(one_device):
    """A step's temporaries are its gradients: no copy of a moment is among them."""
    optimizer = optax.with_extra_args_support(optax.adam(0.1))

    def loss_fn(params, batch, key):
        return Loss(jnp.tanh(batch["x"] @ params["a"]).sum(), batch["x"].sum())

    step = make_step(loss_fn, optimizer, lambda _: 0.1, clip_norm=1.0, accumulation=1)
    params, batch = {"a": jnp.zeros((1000, 1000))}, {"x": jnp.ones((8, 1000))}
    size = params["a"].nbytes
    state = init_state(params, optimizer, 0, one_device)
    program = lower_step(step, state, {}, batch, one_device).compile()
    assert size <= program.memory_analysis().temp_size_in_bytes < 1.5 * size


@pytest.mark.parametrize("option", ["xla_nothing=true", "xla_nothing", "xla_dump_hlo_as_text=so"])
def test_options_of_the_compiler_that_there_are_not(one_device, option):
    optimizer = optax.with_extra_args_support(optax.sgd(0.1))
    step = make_step(lambda *_: Loss(jnp.ones(()), jnp.ones(())), optimizer, lambda _: 0.1,
                     clip_norm=0.0, accumulation=1)  # fmt: skip
    state = init_state({"a": jnp.zeros(())}, optimizer, 0, one_device)
    with pytest.raises(UserError, match="train.compiler"):
        compile_step(lower_step(step, state, {}, {"x": jnp.ones(2)}, one_device, [option]))


def test_moments_of_what_trained_before_go_on(one_device):
    """Those of what trains anew start, and the learning rate is that of the run's step."""
    optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda _: 0.1))
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    before = {"a": params["a"]}
    _, old = optimizer.update({"a": jnp.full(3, 5.0)}, init_moments(before, optimizer, one_device))
    adam, rate = carried_moments(old, params, optimizer, one_device, 7)
    assert (int(adam.count), int(rate.count)) == (1, 7)
    np.testing.assert_allclose(adam.mu["a"], np.full(3, 0.1 * 5), rtol=1e-6)
    np.testing.assert_allclose(adam.nu["a"], np.full(3, 0.001 * 25), rtol=1e-6)
    np.testing.assert_array_equal([adam.mu["b"], adam.nu["b"]], np.zeros((2, 2)))


def of_parts(loss_fn, params, batch, key, parts):
    """The loss and gradients of a batch in microbatches."""

    def found(params, batch):
        return gradients(loss_fn, params, {}, batch, key, parts)

    return quick(found)(params, batch)


def test_microbatches_equal_one_batch(quiet):
    params, loss_fn = quiet
    batch = make_batch(16)
    batch["weights"] = np.array([1] * 9 + [0] * 3 + [0.5, 2, 1, 0], np.float32)  # uneven parts
    batch = {name: jnp.asarray(x) for name, x in batch.items()}
    key = jax.random.key(0)
    loss, grads = of_parts(loss_fn, params, batch, key, 1)
    rounding = 1e-5 * max(float(np.abs(grad).max()) for grad in grads.values())
    for parts in (2, 4, 16):
        parted_loss, parted = of_parts(loss_fn, params, batch, key, parts)
        np.testing.assert_allclose(parted_loss.total, loss.total, rtol=1e-6)
        np.testing.assert_allclose(parted_loss.weight, loss.weight, rtol=1e-6)
        for path, grad in grads.items():
            said = f"{path} of {parts} parts"
            np.testing.assert_allclose(parted[path], grad, rtol=1e-5, atol=rounding, err_msg=said)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_each_part_has_every_nth_row_and_its_own_key(parts):
    """So that it stays spread over devices, and its dropout is no other part's."""
    key, rows = jax.random.key(0), np.arange(12.0)

    def loss_fn(params, batch, key):
        drawn = jax.random.uniform(key, batch["x"].shape)
        return Loss(params["a"] * (batch["x"] * drawn).sum(), jnp.ones(()) * len(drawn))

    loss, grads = gradients(loss_fn, {"a": jnp.ones(())}, {}, {"x": jnp.asarray(rows)}, key, parts)
    keys = [jax.random.fold_in(key, part) for part in range(parts)] if parts > 1 else [key]
    drawn = [jax.random.uniform(each, (12 // parts,)) for each in keys]
    wanted = sum(float(rows[part::parts] @ numbers) for part, numbers in enumerate(drawn))
    assert float(loss.weight) == 12
    np.testing.assert_allclose([loss.total, grads["a"] * 12], wanted, rtol=1e-5)


@pytest.mark.parametrize("unit", [1.0, 1e-12, 0.0])
def test_a_mean_is_the_same_in_any_unit_of_weights(unit, one_device):
    """Of (a − x)² at a = 1 with weights 1 and 3; 0 where all rows are padding."""

    def loss_fn(params, batch, key):
        away = jnp.square(params["a"] - batch["x"])
        return Loss((away * batch["weights"]).sum(), batch["weights"].sum())

    optimizer = optax.with_extra_args_support(optax.sgd(0.1))
    step = make_step(loss_fn, optimizer, lambda _: 0.1, clip_norm=0.0, accumulation=1)
    state = init_state({"a": jnp.ones(())}, optimizer, 0, one_device)
    batch = {"x": jnp.asarray([3.0, 2.0]), "weights": unit * jnp.asarray([1.0, 3.0])}
    after, metrics = step(state, {}, batch)
    loss, gradient = (7 / 4, -5 / 2) if unit else (0, 0)  # (4 + 3 · 1) / 4, −2 (2 + 3 · 1) / 4
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(after.params["a"], 1 - 0.1 * gradient, rtol=1e-5)


def test_rows_of_weight_0_change_nothing(quiet):
    params, loss_fn = quiet
    batch = make_batch(8)
    key = jax.random.key(0)
    _, wanted = of_parts(loss_fn, params, {k: v[:5] for k, v in batch.items()}, key, 1)
    batch["weights"] = np.array([1] * 5 + [0] * 3, np.float32)
    _, found = of_parts(loss_fn, params, batch, key, 1)
    for path, grad in wanted.items():
        np.testing.assert_allclose(found[path], grad, rtol=1e-5, atol=1e-6, err_msg=path)


def test_optimizer_state_is_sharded_as_its_parameters():
    mesh = make_mesh(1, 4, 2)
    small = {"model_type": "bert", "num_hidden_layers": 1, "vocab_size": 1024}
    model = build_tuned(small, methods.create({"name": "full"}), {}, HEAD)
    shardings = param_shardings(model.shapes, model.axes, mesh)
    params = model.init(jax.random.key(0), list(model.shapes), shardings)
    state = init_state(params, optax.adamw(1e-3), 0, mesh)
    kernel = "encoder/layer_0/ffn/up/kernel"
    for moments in (state.opt_state[0].mu, state.opt_state[0].nu, state.params):
        assert moments[kernel].addressable_shards[0].data.shape == (768 // 4, 3072 // 2)
    for path, leaf in state.params.items():
        if leaf.size * 4 > 2**20:
            assert leaf.addressable_shards[0].data.size <= leaf.size / 4, path
