"""Which rows of a batch a host holds: on real slices, and in two processes."""

import json

import numpy as np
import pytest

from ftjax.forecast.chips import AHEAD, topology_devices
from ftjax.parallel.mesh import batch_sharding, batch_ways, make_mesh, rows_of, shard_of
from tests.conftest import here, make_rows, write_jsonl
from tests.forecast.abstract import needs_libtpu
from tests.generation.conftest import write_model
from tests.parallel.processes import by_slurm, ended, start

TOPOLOGIES = (
    "v4:2x2x4", "v5e:4x4", "v5e:8x8", "v5e:16x16", "v5p:2x2x4", "v5p:4x4x4", "v6e:4x4", "v6e:8x8",
)  # fmt: skip
MESHES = ({}, {"data": 1, "fsdp": -1}, {"data": 2, "fsdp": -1, "tensor": 2}, {"tensor": 8})


@needs_libtpu
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_each_host_of_a_slice_has_the_rows_of_its_chips(topology, monkeypatch):
    """A chip gets what JAX's own slicing of the whole batch says, out of its host's rows."""
    for name, value in AHEAD.items():
        monkeypatch.setenv(name, value)
    _, devices = topology_devices(topology)
    for sizes in MESHES:
        mesh = make_mesh(**sizes, devices=devices)
        rows = 2 * batch_ways(mesh)
        batch = np.random.default_rng(0).normal(size=(rows, 3))
        held = {d.process_index: rows_of(mesh, rows, d.process_index) for d in devices}
        for device, index in batch_sharding(mesh).devices_indices_map(batch.shape).items():
            numbers = held[device.process_index]
            shard = shard_of(batch[numbers], numbers, index[0])
            np.testing.assert_array_equal(shard, batch[index])


def test_two_processes_in_turn_along_the_mesh_train_and_write_as_one(tmp_path):
    """Each has every second row and every second part of the parameters; found by SLURM's names."""
    model = write_model(tmp_path / "model", "t5", "seq2seq_lm", num_layers=2, num_decoder_layers=1)
    rows = [{"source": row["text"], "target": row["label"]} for row in make_rows(32, 0)]
    write_jsonl(tmp_path / "data" / "train.jsonl", rows[:22])
    write_jsonl(tmp_path / "data" / "test.jsonl", rows[22:])
    config = tmp_path / "config.py"
    config.write_text(
        f"""
from ftjax.config import default_config

def get_config():
    config = default_config("full", "seq2seq")
    config.model.path, config.data.path = {str(model)!r}, {str(tmp_path / "data")!r}
    config.data.max_length, config.data.buckets = 32, 1
    config.optimizer.name, config.optimizer.learning_rate = "sgd", 0.1
    config.train.steps, config.train.batch_size, config.train.eval_batch_size = 3, 8, 8
    config.task.max_new_tokens, config.task.num_beams = 6, 2
    config.mesh.fsdp, config.mesh.tensor = 2, 2
    return config
"""
    )
    run = {"calls": dict.fromkeys(range(2), "tests.parallel.permuted:main"), "told": by_slurm}
    scores = {}
    for name in ("one", "two"):
        work = tmp_path / name
        train = ["train", "--config", config, "--workdir", work]
        greedy = ["evaluate", "--workdir", work, "--config.task.num_beams=1"]
        if name == "one":
            here(*train, devices=8)
            here(*greedy, devices=8)
        else:
            ended(start(train, 2, **run))
            first, second = ended(start(greedy, 2, **run))
            assert "scores: " in first and "scores: " not in second
        beams = json.loads((work / "result.json").read_text())["metrics"]["test"]
        scores[name] = beams, json.loads((work / "evaluate_test.json").read_text())
    for one, two in zip(*scores.values(), strict=True):
        assert one["chrf"] > 0 and one["written"] == 10
        for name, value in one.items():
            if isinstance(value, float):  # a perplexity of 70 has rounding, too
                value = pytest.approx(value, rel=1e-6, abs=1e-5)
            assert two[name] == value, name
