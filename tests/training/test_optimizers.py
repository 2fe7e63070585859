"""What the optimizers do, at which rates, by torch's, by transformers' schedules and by formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from ftjax.errors import UserError
from ftjax.loss import Loss
from ftjax.optimizers import OPTIMIZERS, create
from ftjax.training.optimizers import clip, make_optimizer, schedule, warmup_steps
from ftjax.training.step import State, gradients, make_step
from tests.conftest import HEAD, build
from tests.covering import covering, product

SETTINGS = {"weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "momentum": 0.0}


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


@pytest.mark.parametrize("limit", [1e-6, 0.5, 2.0, 9.0])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_clipping_equals_torch(scale, limit):
    """Also where the norm is as small as what the divisor is kept from 0 by."""
    grads = {"a": scale * np.float32([1, -2]), "b": scale * np.float32([[2.0]])}  # of norm 3
    found = clip(jax.tree.map(jnp.asarray, grads), jnp.float32(3 * scale), limit)
    leaves = [torch.zeros(grad.shape) for grad in grads.values()]
    for leaf, grad in zip(leaves, grads.values(), strict=True):
        leaf.grad = torch.tensor(grad)
    torch.nn.utils.clip_grad_norm_(leaves, limit)
    for leaf, grad in zip(leaves, found.values(), strict=True):
        np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-5)


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


def test_adafactor_decays_kernels_alone():
    params = {"a/kernel": jnp.full((2, 3), 0.5), "a/bias": jnp.full(3, 0.5)}
    grads, decay = jax.tree.map(jnp.ones_like, params), 0.1

    def updates(weight_decay):
        settings = {**SETTINGS, "name": "adafactor", "weight_decay": weight_decay}
        optimizer = make_optimizer(settings, dict.fromkeys(params, "all"), lambda _: 1e-2)
        return optimizer.update(grads, optimizer.init(params), params, frozen={})[0]

    more, plain = updates(decay), updates(0.0)
    moved = more["a/kernel"] - plain["a/kernel"]
    np.testing.assert_allclose(moved, -decay * params["a/kernel"], rtol=1e-4)
    np.testing.assert_array_equal(more["a/bias"], plain["a/bias"])


def test_nothing_decays_unasked():
    params = {"a/kernel": jnp.ones((2, 3))}
    optimizer = create({"name": "lion"}).rest(lambda _: 0.1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["a/kernel"], zeros["a/kernel"])


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


def test_a_warm_up_of_1_is_one_step():
    """And what is below 1 is a share of the steps."""
    assert [warmup_steps(warmup, 50) for warmup in (0.98, 1, 1.0, 50)] == [49, 1, 1, 50]


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_decay_of_one_step_ends_at_0(name):
    rates = [float(schedule(name, 0.3, 9, 10)(step)) for step in (8, 9, 10, 11)]
    np.testing.assert_allclose(rates, [0.3 * 8 / 9, 0.3, 0.0, 0.0], atol=1e-8)


def test_some_paths_learn_faster_than_others():
    params = {"a/kernel": jnp.ones((2, 3)), "b/kernel": jnp.ones((2, 3))}
    settings = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}
    labels, rates = dict.fromkeys(params, "all"), {"a/kernel": 4.0}
    optimizer = make_optimizer(settings, labels, lambda _: 0.1, rates=rates)
    updates, _ = optimizer.update(params, optimizer.init(params), params, frozen={})
    np.testing.assert_allclose(updates["a/kernel"], np.full((2, 3), -0.4), rtol=1e-6)
    np.testing.assert_allclose(updates["b/kernel"], np.full((2, 3), -0.1), rtol=1e-6)
