"""Regularized runs: what a mesh, an interruption and a frozen base must not change."""

import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ftjax import pretrained, tasks
from ftjax.config import check, default_config, load_config
from ftjax.errors import UserError
from ftjax.parallel.mesh import logical_axes, make_mesh, param_shardings, place_rows
from ftjax.regularization import REGULARIZERS
from ftjax.runs.train import train
from ftjax.testing import stacked
from ftjax.training.recipe import Recipe
from ftjax.training.step import init_state, lower_step
from ftjax.workdir.checkpoints import Checkpoints
from tests.conftest import build, environment, ftjax, here, make_batch, write_tiny
from tests.forked import Forked
from tests.regularization.settings import config_of, differentiated
from tests.runs.test_resume import stop_at

ALL = {"adversarial": "freelb", "mixup": 0.4, "cutoff": 0.1, "neftune": 5.0}
ALL |= {"l2_sp": 0.01, "l2_sp_new": 0.01}
RUN = {
    **{f"regularization.{key}": value for key, value in ALL.items()},
    "train.accumulation": 2,
    "train.steps": 8,
    "train.checkpoint_every": 2,
    "train.eval_every": 8,
    "train.log_every": 1,
    "train.keep": 20,
    "train.swa_start": 0.5,
    "train.swa_every": 2,
    "data.buckets": 1,
    "model.segments": "scan",
}
OVERRIDES = [f"--config.{key}={value}" for key, value in RUN.items()]


def saved(workdir, step):
    """Every array of a checkpoint, by its path."""
    checkpoints = Checkpoints(workdir / "checkpoints")
    standard = ocp.args.StandardRestore()
    items = {"state": standard, "params": standard}
    found = checkpoints._restore(step, **items)
    checkpoints.close()
    paths = jax.tree_util.tree_flatten_with_path(found)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in paths}


def test_interrupted_is_uninterrupted_and_the_mean_is_evaluated(config_file, tmp_path):
    """With several at once; the pretrained values that parameters are pulled to are not saved."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    ftjax("train", "--config", config_file, "--workdir", whole, *OVERRIDES)
    command = ["train", "--config", config_file, "--workdir", stopped, *OVERRIDES]
    out = stop_at(Forked(command, environment(), together=True), stopped, 5, signal.SIGTERM)
    assert "stopped by SIGTERM" in out, out
    assert "resumed at step" in ftjax(*command).stdout
    wanted, found = saved(whole, 8), saved(stopped, 8)
    assert set(found) == set(wanted) and not any("start" in path for path in wanted)
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    kernel = "['encoder']['layers_0_2']['attention']['query']['kernel']"
    steps = {step: saved(whole, step) for step in (2, 4, 6, 8)}
    raw = [steps[step][f"['state']['params']{kernel}"] for step in (4, 6, 8)]
    np.testing.assert_allclose(wanted[f"['params']{kernel}"], np.mean(raw, 0), rtol=1e-5, atol=1e-6)
    assert np.abs(raw[2] - raw[0]).max() > 1e-4
    early = (steps[2][f"['{item}']{kernel}"] for item in ("params", "state']['params"))
    np.testing.assert_array_equal(*early)


def test_scanned_rematerialized_and_on_a_mesh(tmp_path, one_device):
    """All draws are those of one device. Without dropout, whose keys differ in scanned layers."""
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    folder = write_tiny(tmp_path / "calm", num_hidden_layers=2, **calm)
    config, batch = config_of(**ALL), make_batch(8)
    batch["weights"][6:] = 0
    model = build(folder, {"name": "full"})
    params, _ = pretrained.load(folder, model, one_device, jax.random.key(0))
    params = {path: np.asarray(leaf) for path, leaf in params.items()}
    loss, grads = differentiated(config, model, params, batch)
    mesh = make_mesh(2, 2, 2)
    spread = build(folder, {"name": "full"}, {"segments": "scan", "remat": "full"})
    shardings = param_shardings(spread.shapes, spread.axes, mesh)
    placed = {p: jax.device_put(stacked(params, p), shardings[p]) for p in spread.shapes}
    with logical_axes(mesh):
        rows = place_rows(mesh, batch, 8)
        found_loss, found = differentiated(config, spread, placed, rows)
    np.testing.assert_allclose(found_loss, loss, rtol=1e-5)
    largest = max(np.abs(grad).max() for grad in grads.values())
    for path, grad in found.items():
        np.testing.assert_allclose(grad, stacked(grads, path), atol=1e-4 * largest, err_msg=path)


def test_a_frozen_base_stays_as_it_is(tiny, one_device):
    """To the bit, under LoRA with an adversary."""
    model = build(tiny, {"name": "lora"}, {"segments": "scan"})
    params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    trainable, frozen = model.partition.split(params)
    before, config = (
        {path: np.array(leaf) for path, leaf in params.items()},
        config_of(adversarial="fgm"),
    )
    recipe = Recipe(config, tasks.create(config.task), model, 10)
    state = init_state(trainable, recipe.optimizer(model), 0, one_device)
    batch = place_rows(one_device, make_batch(8), 8)
    program = lower_step(recipe.step(model), state, frozen, batch, one_device).compile()
    for _ in range(3):
        state, _ = program(state, frozen, batch)
    for path, leaf in {**frozen, **state.params}.items():
        assert np.any(np.asarray(leaf) != before[path]) == (path in trainable), path


def test_words_are_looked_up_anew(config_file, tmp_path):
    """With an adversary, what is below a head that alone trains is not kept from before."""
    changes = {"method.name": "head", "train.steps": 1, "data.buckets": 1, "model.segments": "scan"}
    changes["regularization.adversarial"] = "fgm"
    overrides = [f"--config.{key}={value}" for key, value in changes.items()]
    result = train(check(load_config(str(config_file), overrides)), tmp_path / "run")
    assert result["cached_frozen"] is False


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adversarial", "fmg"),
        ("epsilon", 0.0),
        ("step_size", -1.0),
        ("steps", 0),
        ("rdrop", -0.5),
        ("mixup", -0.5),
        ("cutoff", 1.0),
        ("neftune", -5.0),
        ("l2_sp", -0.1),
        ("l2_sp_new", -0.1),
    ],
)
def test_values_out_of_range_are_named(key, value):
    config = default_config()
    config.regularization[key] = value
    with pytest.raises(UserError, match=rf"regularization\.{key}={value!r}"):
        check(config)


def test_list_says_what_there_is(capsys):
    here("list", "regularizers")
    out = capsys.readouterr().out
    assert all(name in out for name in REGULARIZERS)
