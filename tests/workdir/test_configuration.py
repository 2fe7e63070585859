"""A work folder is read on other devices than it was trained on."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from ftjax.errors import UserError
from ftjax.parallel.mesh import AXES, mesh_like
from ftjax.workdir.configuration import read_config
from tests.conftest import ftjax, here
from tests.generation.conftest import write_model

TRAIN = ["--config.train.steps=2", "--config.train.eval_batch_size=2", "--config.mesh.fsdp=2"]


def devices(count, slices=1):
    return [SimpleNamespace(platform="tpu", slice_index=i * slices // count) for i in range(count)]


@pytest.mark.parametrize(
    ("trained", "given", "count", "slices", "wanted"),
    [
        ({"data": -1}, {}, 4, 1, {"data": 4}),
        ({"data": -1, "fsdp": 2}, {}, 1, 1, {}),
        ({"data": -1, "fsdp": 2}, {}, 8, 1, {"data": 4, "fsdp": 2}),
        ({"data": 2, "fsdp": 4, "tensor": 2}, {}, 16, 1, {"data": 2, "fsdp": 4, "tensor": 2}),
        ({"data": 2, "fsdp": 4, "tensor": 2}, {}, 4, 1, {"fsdp": 2, "tensor": 2}),
        ({"data": 2, "fsdp": 4, "tensor": 2}, {}, 3, 1, {"data": 3}),
        ({"data": 2, "fsdp": -1}, {}, 8, 1, {"data": 2, "fsdp": 4}),
        ({"data": 1, "fsdp": -1, "sequence": 2}, {}, 6, 1, {"fsdp": 3, "sequence": 2}),
        ({"data": 1, "fsdp": 8}, {}, 8, 2, {"data": 2, "fsdp": 4}),
        ({"data": -1, "fsdp": 4}, {"tensor": 2}, 8, 1, {"fsdp": 4, "tensor": 2}),
        ({"data": 2, "fsdp": 4}, {"fsdp": 1}, 8, 1, {"data": 8}),
        ({"data": -1, "fsdp": 4}, {"tensor": -1}, 8, 1, {"fsdp": 4, "tensor": -1}),
        ({"data": 8}, {"fsdp": -1}, 8, 1, {"fsdp": -1}),
        ({"data": 2, "fsdp": 4}, {"data": 2}, 8, 1, {"data": 2, "fsdp": 4}),
    ],
)  # fmt: skip
def test_meshes_of_other_devices(trained, given, count, slices, wanted):
    ones = dict.fromkeys(AXES, 1)
    found = mesh_like({**ones, **trained}, given, devices(count, slices))
    assert found == {**ones, **wanted}


@pytest.fixture(scope="module")
def trained(config_file, tmp_path_factory):
    """On two devices, with parameters spread over both."""
    work = tmp_path_factory.mktemp("trained") / "work"
    ftjax("train", "--config", config_file, "--workdir", work, *TRAIN, devices=2)
    return work


def probabilities(file):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [list(row["probabilities"].values()) for row in rows]


def test_scores_and_labels_are_those_of_the_devices_that_trained(trained, corpus, tmp_path):
    """On one device, on eight by themselves, and on eight as asked; in another dtype nearly."""
    wanted = json.loads((trained / "result.json").read_text())["metrics"]["test"]
    asked = ["predict", "--workdir", trained, "--input", corpus / "test.jsonl", "--output"]
    ftjax(*asked, tmp_path / "one.jsonl")
    here(*asked, tmp_path / "eight.jsonl", devices=8)
    spread = ("--config.mesh.fsdp=4", "--config.mesh.data=2")
    here(*asked, tmp_path / "spread.jsonl", *spread, devices=8)
    here(*asked, tmp_path / "bfloat16.jsonl", "--config.model.dtype=bfloat16")
    one = probabilities(tmp_path / "one.jsonl")
    for name in ("eight", "spread"):
        np.testing.assert_allclose(probabilities(tmp_path / f"{name}.jsonl"), one, atol=1e-5)
    rounded = probabilities(tmp_path / "bfloat16.jsonl")
    np.testing.assert_allclose(rounded, one, atol=0.1)
    assert np.abs(np.subtract(rounded, one)).max() > 1e-4
    here("evaluate", "--workdir", trained)
    scores = json.loads((trained / "evaluate_test.json").read_text())
    assert scores["accuracy"] == wanted["accuracy"]
    assert scores["loss"] == pytest.approx(wanted["loss"], abs=1e-5)


def test_scores_are_said_where_they_cannot_be_written(trained, capsys):
    (trained / "evaluate_validation.json" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError):
        here("evaluate", "--workdir", trained, "--split", "validation")
    assert "validation: loss" in capsys.readouterr().out


def test_an_export_is_the_same_from_any_devices(trained, tmp_path):
    asked = ["export", "--workdir", trained, "--format", "hf", "--output"]
    ftjax(*asked, tmp_path / "one")
    here(*asked, tmp_path / "eight", "--config.mesh.tensor=2", devices=8)
    one, eight = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "eight"))
    assert one.keys() == eight.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(eight[name], array, err_msg=name)


def test_generation_by_other_devices(tmp_path, capsys):
    """Of the run, in another dtype and on another mesh; what is not for it is refused."""
    model = write_model(tmp_path / "model", "llama", "causal_lm")
    text = tmp_path / "train.txt"
    text.write_text("the film was good\nthe music is dull\n" * 8)
    config = tmp_path / "config.py"
    config.write_text(
        f"""
from ftjax.config import default_config

def get_config():
    config = default_config("full", "causal_lm")
    config.model.path, config.data.path = {str(model)!r}, {str(text)!r}
    config.data.source, config.data.prepare = "text", ()
    config.data.max_length = 16
    config.train.steps, config.train.batch_size = 1, 4
    config.mesh.fsdp = 2
    return config
"""
    )
    work = tmp_path / "work"
    ftjax("train", "--config", config, "--workdir", work, devices=2)
    asked = ["generate", "--workdir", work, "--prompt", "the film", "--max-new-tokens", "5"]
    wanted = ftjax(*asked).stdout
    assert wanted.strip()
    for more in (
        ("--tensor", "2"),
        ("--config.mesh.data=8", "--config.mesh.fsdp=1"),
        ("--dtype", "bfloat16", "--config.model.attention=xla"),
    ):
        here(*asked, *more, devices=8)
        assert capsys.readouterr().out == wanted
    with pytest.raises(UserError, match="give --workdir"):
        here("generate", "--model", model, "--prompt", "the", "--config.mesh.fsdp=2")


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "--input", "rows.jsonl", "--output", "out.jsonl"],
        ["evaluate"],
        ["export", "--format", "hf", "--output", "out"],
        ["generate", "--prompt", "the"],
    ],
    ids=lambda command: command[0],
)
def test_what_would_change_the_model_is_refused(trained, command):
    with pytest.raises(UserError, match="--config.task.pooling cannot be changed here"):
        here(command[0], "--workdir", trained, *command[1:], "--config.task.pooling=mean")


def test_rows_divide_over_what_is_there(trained):
    """Eight devices, of which rows have all: two rows at a time are too few."""
    assert read_config(trained).train.eval_batch_size == 8
