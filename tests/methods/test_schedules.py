"""Selections that differ by layer or change during training."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftjax.testing import build
from ftjax.training.optimizers import make_optimizer
from ftjax.training.step import carried_moments, init_moments
from tests.conftest import ftjax
from tests.runs.test_resume import OVERRIDES, STEPS, final, start, stop_at

ADAM = {"name": "adamw", "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}


def test_lower_layers_learn_more_slowly():
    """rate · γ^(L − l), embeddings γ^(L + 1), the head at the rate itself."""
    bert = build("bert", {"name": "layerwise_lr_decay", "decay": 0.5}).rates()
    assert bert["embeddings/word/embedding"] == bert["embeddings/norm/scale"] == 0.5**3
    assert bert["encoder/layer_0/ffn/up/kernel"] == 0.5**2
    assert bert["encoder/layer_1/attention_norm/bias"] == 0.5
    assert not {"classifier/kernel", "pooler/bias"} & set(bert)
    scanned = build("bert", {"name": "layerwise_lr_decay", "decay": 0.5}, {"segments": "scan"})
    kernel = scanned.rates()["encoder/layers_0_2/ffn/up/kernel"]
    np.testing.assert_array_equal(kernel.ravel(), [0.25, 0.5])
    t5 = build("t5", {"name": "layerwise_lr_decay", "decay": 0.5}).rates()
    assert t5["words/embedding"] == 0.5**4
    assert t5["encoder/layers/layer_0/ffn/up/kernel"] == 0.5**3
    assert t5["decoder/layers/layer_0/cross/query/kernel"] == 0.5


def test_layers_thaw_from_the_top():
    model = build("bert", {"name": "gradual_unfreezing", "every": 10})

    def active(step):
        phase = model.at_step(step)
        assert phase is model.at_step(step)
        paths = [path for path in model.shapes if phase.partition.is_trainable(path)]
        return {"/".join(path.split("/")[:2]) for path in paths}

    top = {"classifier/kernel", "classifier/bias", "pooler/kernel", "pooler/bias"}
    assert active(0) == active(9) == top
    assert active(10) == top | {"encoder/layer_1"}
    assert active(20) == top | {"encoder/layer_0", "encoder/layer_1"}
    everything = {"/".join(path.split("/")[:2]) for path in model.shapes}
    assert active(30) == active(10_000) == everything


def test_lisa_draws_layers_and_keeps_the_ends():
    model = build("t5", {"name": "lisa", "layers": 2, "every": 5})
    drawn = set()
    for step in range(0, 200, 5):
        phase = model.at_step(step)
        assert phase is model.at_step(step + 4)
        groups = set(phase.partition.groups)
        layers = {g for g in groups if g.startswith("layer_")}
        assert len(layers) == 2 and groups - layers == {"embeddings", "head"}
        drawn.add(frozenset(layers))
    assert len(drawn) == 3  # of three layers, every pair


def adam(grads, rates, dtype=np.float64):
    """Adam's steps from fresh moments, worked by hand."""
    first = second = total = 0.0
    for t, (grad, rate) in enumerate(zip(grads, rates, strict=True)):
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        step = first / (1 - 0.9 ** (t + 1)) / (np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8)
        total = total - rate * step
    return total


def test_what_trains_already_keeps_its_moments(one_device):
    """And what trains anew begins with fresh ones, at the learning rate of the whole run."""
    model = build("bert", {"name": "gradual_unfreezing", "every": 3})
    steps, random = 8, np.random.default_rng(0)
    rate = optax.linear_schedule(0.0, 1.0, steps)
    params = {path: jnp.zeros(leaf.shape) for path, leaf in model.shapes.items()}
    grads = {path: random.normal(size=(steps, *x.shape)) for path, x in params.items()}
    state, before = None, None
    for step in range(steps):
        phase = model.at_step(step).partition
        active = phase.split(params)[0]
        labels = {path: phase.labels[path] for path in active}
        optimizer = make_optimizer(ADAM, labels, rate, model.optimizer, model.rates(), steps)
        if phase is not before:
            place, before = (active, optimizer, one_device), phase
            state = carried_moments(state, *place, step) if step else init_moments(*place)
        found = {path: jnp.asarray(grads[path][step], jnp.float32) for path in active}
        updates, state = jax.jit(optimizer.update)(found, state, active)
        params |= optax.apply_updates(active, updates)
    rates = [float(rate(step)) for step in range(steps)]
    for path, since in (
        ("classifier/kernel", 0),
        ("encoder/layer_1/ffn/up/bias", 3),
        ("encoder/layer_0/attention/query/bias", 6),
    ):
        wanted = adam(grads[path][since:], rates[since:])
        np.testing.assert_allclose(params[path], wanted, rtol=2e-5, atol=1e-6, err_msg=path)
    assert not np.any(params["embeddings/norm/scale"])


def test_a_killed_run_goes_on_to_the_bit(config_file, tiny, tmp_path):
    """Across changes of what trains; the result is that of the run that was not killed."""
    overrides = ["--config.method.name=lisa", "--config.method.every=10", "--config.data.buckets=1"]
    overrides.append(f"--config.model.path={tiny}")  # whose layers are more than it draws
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ftjax("train", "--config", config_file, "--workdir", whole, *OVERRIDES, *overrides)
    stop_at(start(config_file, killed, *overrides), killed, 17, signal.SIGKILL)
    assert not (killed / "result.json").exists()
    ftjax("train", "--config", config_file, "--workdir", killed, *OVERRIDES, *overrides)
    (step, state), (other_step, other) = final(whole), final(killed)
    assert step == other_step == STEPS and set(state) == set(other)
    for path, leaf in state.items():
        np.testing.assert_array_equal(other[path], leaf, err_msg=path)
    results = [json.loads((run / "result.json").read_text()) for run in (whole, killed)]
    assert results[0]["metrics"] == results[1]["metrics"]
