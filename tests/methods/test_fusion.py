"""AdapterFusion over adapters that earlier runs trained."""

import jax
import numpy as np
import pytest

from ftjax import methods
from ftjax.config import check, load_config
from ftjax.errors import UserError
from ftjax.setup.earlier_runs import best_params
from ftjax.setup.model import place_model
from tests.conftest import ftjax

pytestmark = pytest.mark.usefixtures("first_device")

SETTINGS = ["--config.method.reduction=8", "--config.train.steps=3"]


@pytest.fixture(scope="module")
def runs(config_file, tmp_path_factory):
    """Two adapters trained on one base."""
    folder, found = tmp_path_factory.mktemp("fused"), []
    for seed in range(2):
        found.append(folder / str(seed))
        command = ["train", "--config", config_file, "--workdir", found[-1]]
        ftjax(*command, "--config.method.name=pfeiffer", f"--config.seed={seed}", *SETTINGS)
    return found


def settings(config_file, folders, *more):
    chosen = [f"--config.method.adapters={','.join(map(str, folders))}", *SETTINGS, *more]
    return ["--config.method.name=adapter_fusion", *chosen]


def test_trained_adapters_are_in_place_and_stay(config_file, runs, shallow, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(runs[0].parent))
    arguments = settings(config_file, [runs[0], f"~/{runs[1].name}"])
    run = place_model(check(load_config(str(config_file), arguments)), ("a", "b"))
    for number, folder in enumerate(runs):
        trained, _ = best_params(folder, shallow)
        paths = [path for path in trained if "/adapter/" in path]
        assert len(paths) == 2 * 4  # layers, and two kernels and biases
        for path in paths:
            there = run.frozen[path.replace("/adapter/", f"/adapter_{number}/")]
            np.testing.assert_array_equal(there, trained[path])
    assert {path.split("/")[-2] for path in run.trainable} == {"fusion", "classifier"}
    ftjax("train", "--config", config_file, "--workdir", tmp_path / "run", *arguments)
    params, _ = best_params(tmp_path / "run", shallow)
    assert set(params) == set(run.trainable)
    moved = [np.any(np.asarray(params[path]) != run.trainable[path]) for path in params]
    assert jax.tree.all(moved)


def test_values_are_kept_near_the_identity():
    """λ Σ ‖I − V‖² over layers, stacked or not."""
    values = np.random.default_rng(0).normal(size=(3, 4, 4)).astype("f")
    params = {f"layers/ffn/fusion/{name}_kernel": values for name in ("value", "query")}
    params["top/ffn/fusion/value_kernel"] = 2 * values[0]
    wanted = sum(((np.eye(4) - v) ** 2).sum() for v in (*values, 2 * values[0]))
    method = methods.create({"name": "adapter_fusion", "regularization": 0.5})
    np.testing.assert_allclose(method.penalty(None, params), 0.5 * wanted, rtol=1e-5)


def test_adapters_that_do_not_fit_are_refused(config_file, runs, tmp_path):
    def placed(folders, *more):
        arguments = settings(config_file, folders, *more)
        return place_model(check(load_config(str(config_file), arguments)), ("a", "b"))

    with pytest.raises(UserError, match=r'method\.adapters: .* is of .*"reduction": 8'):
        placed(runs, "--config.method.reduction=4")
    with pytest.raises(UserError, match=r"adapter_config\.json does not exist"):
        placed([runs[0], tmp_path])
