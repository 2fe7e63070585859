"""Whole training runs on eight virtual devices equal one on a single device."""

import json
from dataclasses import dataclass

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats.folder import read_config
from ftjax.parallel.mesh import AXES, batch_sharding, local_rows, make_mesh, param_shardings
from ftjax.workdir.checkpoints import Checkpoints
from ftjax.workdir.records import read_rows
from tests.conftest import build, ftjax, write_tiny
from tests.covering import covering, product

OVERRIDES = ["--config.train.epochs=1", "--config.train.log_every=1"]


def run(config_file, workdir, devices, *overrides):
    arguments = ["train", "--config", config_file, "--workdir", workdir, *OVERRIDES, *overrides]
    ftjax(*arguments, devices=devices)
    losses = [row["loss"] for row in read_rows(workdir / "metrics.jsonl") if "loss" in row]
    checkpoints = Checkpoints(workdir / "checkpoints")
    items = {"params": ocp.args.StandardRestore()}
    params = checkpoints._restore(checkpoints.latest(), **items)["params"]
    checkpoints.close()
    result = json.loads((workdir / "result.json").read_text())
    return losses, jax.tree.map(np.asarray, params), result["metrics"]


MESHES = {
    "data": {"data": 8},
    "fsdp": {"data": 2, "fsdp": 4},
    "tensor": {"data": 2, "fsdp": 2, "tensor": 2, "near": "data"},
    "sequence": {"data": 1, "fsdp": 2, "sequence": 2, "tensor": 2},
}
CASES = [(method, mesh) for method in ("full", "lora") for mesh in MESHES]


@pytest.fixture(scope="module")
def single(request, config_file, tmp_path_factory):
    method = f"--config.method.name={request.param}"
    workdir = tmp_path_factory.mktemp("single") / "run"
    return method, run(config_file, workdir, 1, method, "--config.optimizer.name=sgd")


@pytest.mark.parametrize(
    ("single", "mesh"), product(CASES, covering(CASES)), indirect=["single"], scope="module"
)
def test_equals_the_single_device_run(single, mesh, config_file, tmp_path):
    method, (losses, params, metrics) = single
    mesh = [f"--config.mesh.{axis}={n}" for axis, n in MESHES[mesh].items()]
    sgd = "--config.optimizer.name=sgd"
    found_losses, found, found_metrics = run(config_file, tmp_path / "run", 8, method, sgd, *mesh)
    np.testing.assert_allclose(found_losses, losses, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, params)
    for split in metrics:
        assert found_metrics[split]["accuracy"] == metrics[split]["accuracy"]


def test_packed_rows_spread_over_devices(config_file, tmp_path):
    """Without dropout: the rows of a batch depend on the mesh, its examples do not."""
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    calm["num_hidden_layers"] = 2
    model = f"--config.model.path={write_tiny(tmp_path / 'calm', **calm)}"
    overrides = [model, "--config.data.batching=pack", "--config.optimizer.name=sgd"]
    mesh = [f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor")]
    losses, params, metrics = run(config_file, tmp_path / "one", 1, *overrides)
    found_losses, found, found_metrics = run(config_file, tmp_path / "all", 8, *overrides, *mesh)
    np.testing.assert_allclose(found_losses, losses, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, params)
    assert found_metrics["test"]["accuracy"] == metrics["test"]["accuracy"]


def test_parameters_are_really_sharded(tiny):
    mesh = make_mesh(2, 2, 2)
    model = build(tiny, {"name": "full"})
    shardings = param_shardings(model.shapes, model.axes, mesh)
    wanted = {
        "embeddings/word/embedding": (2, 2),
        "encoder/layer_0/attention/query/kernel": (2, 2),
        "encoder/layer_0/attention/query/bias": (2,),
        "encoder/layer_0/attention/output/kernel": (2, 2),
        "encoder/layer_0/ffn/up/kernel": (2, 2),
        "encoder/layer_0/ffn/down/kernel": (2, 2),
        "classifier/kernel": (2, 1),
    }
    for path, parts in wanted.items():
        shape = model.shapes[path].shape
        local = tuple(n // p for n, p in zip(shape, parts, strict=True))
        assert shardings[path].shard_shape(shape) == local, path


def test_a_dimension_that_does_not_divide_is_named(tiny):
    from ftjax import methods

    config = {**read_config(tiny), "vocab_size": 63}
    model = build_tuned(config, methods.create({"name": "full"}))
    mesh = make_mesh(1, 4, 2)
    with pytest.raises(UserError, match=r"embeddings/word/embedding.*63.*mesh\.tensor=2"):
        param_shardings(model.shapes, model.axes, mesh)
    replicated = param_shardings(model.shapes, model.axes, mesh, ("embeddings/word/embedding",))
    assert replicated["embeddings/word/embedding"].is_fully_replicated


def test_a_mesh_that_does_not_match_the_devices_is_named():
    for sizes in ((3, 1, 1), (2, 2, 4), (-1, -1, 1), (0, 1, 1)):
        with pytest.raises(UserError, match="mesh.data"):
            make_mesh(*sizes)
    assert make_mesh(-1, 2, 2).shape == {
        **dict.fromkeys(AXES, 1),
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }


@dataclass(frozen=True)
class Gpu:
    """What JAX says of one, where a node's are called a slice."""

    id: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"

    @property
    def slice_index(self):
        return self.id // 8


def test_gpus_of_several_nodes_may_share_parameters():
    nodes = [Gpu(number) for number in range(16)]
    mesh = make_mesh(1, -1, devices=nodes)
    assert mesh.shape["fsdp"] == 16
    assert [gpu.id for gpu in mesh.devices.flat] == list(range(16))
    within = make_mesh(-1, 8, devices=nodes).devices
    assert {gpu.slice_index for gpu in within[0].flat} == {0}


def test_rows_of_a_batch_lie_on_data_and_fsdp():
    mesh = make_mesh(2, 2, 2)
    assert batch_sharding(mesh).shard_shape((16, 5)) == (4, 5)
    np.testing.assert_array_equal(local_rows(mesh, 16), np.arange(16))


def test_a_batch_that_does_not_spread_is_named(config_file, tmp_path):
    arguments = ["train", "--config", config_file, "--workdir", tmp_path / "w"]
    failed = ftjax(*arguments, "--config.train.batch_size=12", devices=8, expect=2)
    assert "train.batch_size=12" in failed.stderr


def test_neighbours_along_an_axis():
    """Numbers of virtual devices stand for their order; the last axis is the nearest."""

    def ids(**settings):
        mesh = make_mesh(data=4, tensor=2, **settings)
        return np.vectorize(lambda device: device.id)(mesh.devices)[:, 0, 0, 0, :].tolist()

    assert ids() == ids(near=("tensor",)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert ids(near=("tensor", "data")) == ids(near=("data",)) == [[0, 4], [1, 5], [2, 6], [3, 7]]
    with pytest.raises(UserError, match="mesh.near=\\('data', 'data'\\) names an axis twice"):
        make_mesh(near=("data", "data"))
