"""The step: what it costs, what accumulation changes, what the optimizers do."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.config import default_config
from ftjax.errors import UserError
from ftjax.forecast.lowering import abstract_recipe, compiled
from ftjax.loss import Loss
from ftjax.optimizers import OPTIMIZERS
from ftjax.parallel.mesh import make_mesh
from ftjax.training.averages import moving
from ftjax.training.optimizers import make_optimizer, schedule, warmup_steps
from ftjax.training.step import State, gradients, init_state, make_step
from tests.conftest import HEAD, build, cross_entropy, make_batch
from tests.covering import covering, product
from tests.models.random_models import quick

SETTINGS = {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "momentum": 0.0}


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
    step = make_step(loss_fn, optimizer, lambda _: 0.1, **kept)
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
    step = make_step(loss_fn, optimizer, lambda _: 0.1, clip_norm=1.0, accumulation=1)
    state = init_state(params, optimizer, 0, one_device)
    after, metrics = step(state, {}, batch | {"weights": jnp.full(8, jnp.inf)})
    assert not np.isfinite(metrics["grad_norm"]) and int(after.step) == 1
    jax.tree.map(
        np.testing.assert_array_equal,
        (after.params, after.opt_state),
        (state.params, state.opt_state),
    )


RATED = [(name, parts) for name in OPTIMIZERS for parts in (1, 2)]


@pytest.mark.parametrize(("name", "parts"), product(RATED, covering(RATED)))
def test_the_rate_logged_is_the_one_used_after_skipped_steps(name, parts):
    """Each step moves by its logged rate times what a rate of 1 would; the schedule ends at 0."""
    params = {"a/kernel": jnp.full((2, 3), 0.3), "a/bias": jnp.full(3, 0.3)}

    def loss_fn(params, batch, key):
        away = sum(jnp.square(leaf - 1).sum() for leaf in params.values())
        return Loss(away * batch["scale"].sum(), jnp.ones(()))

    steps, skipped = 8, (0, 3, 4)
    rate, labels = schedule("linear", 0.1, 2, steps), dict.fromkeys(params, "all")
    settings = {**SETTINGS, "name": name, "momentum": 0.9}
    optimizer = make_optimizer(settings, labels, rate)
    unit = jax.jit(make_optimizer(settings, labels, optax.constant_schedule(1.0)).update)
    step = jax.jit(make_step(loss_fn, optimizer, rate, clip_norm=0.0, accumulation=parts))
    state = State(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(0))
    for number in range(steps):
        batch = {"scale": jnp.full(2, jnp.nan if number in skipped else 0.5)}
        before = state
        state, metrics = step(state, {}, batch)
        whole = {"scale": jnp.full(2, 0.5)}
        _, grads = gradients(loss_fn, before.params, {}, whole, jax.random.key(0), parts)
        wanted, _ = unit(grads, before.opt_state, before.params, frozen={})
        used = 0.0 if number in skipped else float(metrics["learning_rate"])
        for path, leaf in wanted.items():
            moved = state.params[path] - before.params[path]
            np.testing.assert_allclose(moved, used * leaf, rtol=1e-4, atol=1e-7)
    assert float(metrics["learning_rate"]) == pytest.approx(0.1 / 6)  # a step more would be at 0


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


def test_rows_of_weight_0_change_nothing(quiet):
    params, loss_fn = quiet
    batch = make_batch(8)
    key = jax.random.key(0)
    _, wanted = of_parts(loss_fn, params, {k: v[:5] for k, v in batch.items()}, key, 1)
    batch["weights"] = np.array([1] * 5 + [0] * 3, np.float32)
    _, found = of_parts(loss_fn, params, batch, key, 1)
    for path, grad in wanted.items():
        np.testing.assert_allclose(found[path], grad, rtol=1e-5, atol=1e-6, err_msg=path)


def run_ours(name, steps=6, clip=0.0, **settings):
    """Steps on a fixed quadratic of two leaves, one of which is not decayed."""
    target = {"a/kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "a/bias": jnp.ones(3)}
    params = {path: jnp.zeros_like(leaf) + 0.3 for path, leaf in target.items()}

    def loss_fn(params, batch, key):
        total = sum(((params[p] - target[p]) ** 2).sum() for p in target)
        return Loss(total, jnp.ones(()))

    rate = schedule("linear", 0.1, 2, steps)
    labels = dict.fromkeys(params, "all")
    optimizer = make_optimizer({**SETTINGS, **settings, "name": name}, labels, rate)
    step = make_step(loss_fn, optimizer, rate, clip_norm=clip, accumulation=1)
    state = State(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key(0))
    rates = []
    for _ in range(steps):
        state, metrics = step(state, {}, {})
        rates.append(float(metrics["learning_rate"]))
    return {path: np.asarray(leaf) for path, leaf in state.params.items()}, target, rates


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("adamw", {"weight_decay": 0.1}),
        ("adamw", {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}),
        ("sgd", {"momentum": 0.9}),
        ("sgd", {"weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_optimizer_equals_torch(name, settings, clip):
    found, target, rates = run_ours(name, clip=clip, **settings)
    leaves = {p: torch.full(t.shape, 0.3, requires_grad=True) for p, t in target.items()}
    decay = settings.get("weight_decay", 0.0)
    groups = [
        {"params": [leaves["a/kernel"]], "weight_decay": decay},
        {"params": [leaves["a/bias"]], "weight_decay": 0.0},
    ]
    if name == "adamw":
        betas = (settings.get("beta1", 0.9), settings.get("beta2", 0.999))
        optimizer = torch.optim.AdamW(groups, betas=betas, eps=settings.get("epsilon", 1e-8))
    else:
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=settings.get("momentum", 0.0))
    linear = transformers.get_linear_schedule_with_warmup(optimizer, 2, 6)
    for group, base in zip(optimizer.param_groups, [0.1, 0.1], strict=True):
        group["initial_lr"] = base
    linear.base_lrs = [0.1, 0.1]
    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        sum(
            ((leaves[p] - torch.tensor(np.asarray(t))) ** 2).sum() for p, t in target.items()
        ).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(leaves.values(), clip)
        optimizer.step()
    for path, leaf in leaves.items():
        np.testing.assert_allclose(found[path], leaf.detach().numpy(), atol=1e-5, err_msg=path)


def test_lion_equals_its_formula():
    found, target, rates = run_ours("lion", weight_decay=0.1)
    for path, decay in (("a/kernel", 0.1), ("a/bias", 0.0)):
        x, m = np.full(target[path].shape, 0.3), 0.0
        for rate in rates:  # Chen et al. 2023, algorithm 2, β = 0.9, 0.99
            grad = 2 * (x - np.asarray(target[path]))
            x = x - rate * (np.sign(0.9 * m + 0.1 * grad) + decay * x)
            m = 0.99 * m + 0.01 * grad
        np.testing.assert_allclose(found[path], x, rtol=1e-5, err_msg=path)


def test_adafactor_factors_its_second_moments(shallow, one_device):
    model = build(shallow, {"name": "full"}, {}, HEAD)
    big = {"a/kernel": jnp.ones((256, 512)), "a/bias": jnp.ones(512)}
    optimizer = make_optimizer(
        {**SETTINGS, "name": "adafactor"}, dict.fromkeys(big, "g"), lambda s: 1e-3
    )
    state = optimizer.init(big)
    assert sum(x.size for x in jax.tree.leaves(state)) < 256 * 512 / 10
    assert model.partition.groups == ("backbone",)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_descends(name):
    found, target, _ = run_ours(name, steps=30)
    for path, leaf in target.items():
        assert np.abs(found[path] - leaf).mean() < np.abs(0.3 - leaf).mean()


@pytest.mark.parametrize("warmup", [0, 7, 0.13])
@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "inverse_sqrt"])
def test_schedule_equals_transformers(name, warmup):
    steps = 50
    rise = warmup_steps(warmup, steps)
    assert rise == (7 if warmup else 0)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = {
        "linear": lambda: transformers.get_linear_schedule_with_warmup(optimizer, rise, steps),
        "cosine": lambda: transformers.get_cosine_schedule_with_warmup(optimizer, rise, steps),
        "constant": lambda: transformers.get_constant_schedule_with_warmup(optimizer, rise),
        "inverse_sqrt": lambda: transformers.get_inverse_sqrt_schedule(
            optimizer, rise, timescale=max(rise, 1)
        ),
    }[name]()
    ours = schedule(name, 0.3, warmup, steps)
    for step in range(steps):
        np.testing.assert_allclose(ours(step), theirs.get_last_lr()[0], rtol=1e-4, atol=1e-8)
        optimizer.step()
        theirs.step()


def test_unknown_names_suggest():
    with pytest.raises(UserError, match="adamw"):
        make_optimizer({**SETTINGS, "name": "adamv"}, {"a": "g"}, lambda s: 1.0)
    with pytest.raises(UserError, match="cosine"):
        schedule("cosin", 1.0, 0, 10)


def test_optimizer_state_is_sharded_as_its_parameters():
    from ftjax.parallel.mesh import make_mesh

    mesh = make_mesh(1, 4, 2)
    model = build_tuned(
        {"model_type": "bert", "num_hidden_layers": 1}, methods.create({"name": "full"}), {}, HEAD
    )
    from ftjax.parallel.mesh import param_shardings

    shardings = param_shardings(model.shapes, model.axes, mesh)
    params = model.init(jax.random.key(0), list(model.shapes), shardings)
    state = init_state(params, optax.adamw(1e-3), 0, mesh)
    kernel = "encoder/layer_0/ffn/up/kernel"
    for moments in (state.opt_state[0].mu, state.opt_state[0].nu, state.params):
        assert moments[kernel].addressable_shards[0].data.shape == (768 // 4, 3072 // 2)
    for path, leaf in state.params.items():
        if leaf.size * 4 > 2**20:
            assert leaf.addressable_shards[0].data.size <= leaf.size / 4, path
