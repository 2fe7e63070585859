"""What is refused of AdapterHub's folders, in and out; and pickled tensors."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ftjax.errors import UserError
from ftjax.formats.adapterhub.folder import read_adapter, read_method
from ftjax.formats.pickled import read_tensors
from tests.formats.adapterhub_cases import FOLDER, build, export

IA3 = {"name": "ia3", "feedforward": "none", "targets": ("key",)}


@pytest.mark.parametrize(("family", "method"), [("gpt2", "houlsby"), ("llama", "houlsby")])
def test_a_head_of_two_layers_is_refused(family, method):
    folder = FOLDER / family / method
    with pytest.raises(UserError, match="none of this model's"):
        read_adapter(folder, build(folder))


def test_pickled_tensors_equal_those_in_safetensors():
    wanted, folder = FOLDER / "bert" / "houlsby", FOLDER / "bert" / "houlsby_pickled"
    model = build(wanted)
    found = read_adapter(folder, model)
    for path, array in read_adapter(wanted, model).items():
        np.testing.assert_array_equal(found.pop(path), array, path)
    assert not found


def test_strided_and_half_tensors_of_a_pickle(tmp_path):
    shared = torch.arange(24.0).reshape(4, 6)
    tensors = {"turned": shared.T, "part": shared[1:3, ::2], "whole": shared}
    tensors |= {"half": shared.half(), "bfloat16": shared.bfloat16(), "long": shared.long()}
    tensors |= {"scalar": torch.tensor(3.0), "none": torch.zeros(0, 3)}
    torch.save(tensors, tmp_path / "x.bin")
    found = read_tensors(tmp_path / "x.bin")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name].astype(np.float32), tensor.float().numpy(), name)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Run:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Run()}, tmp_path / "x.bin")
    with pytest.raises(UserError, match="not read"):
        read_tensors(tmp_path / "x.bin")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "x.bin").write_bytes(b"no archive")
    with pytest.raises(UserError, match="x.bin is corrupt"):
        read_tensors(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2}, "r=4"),
        ({"alpha": 3.0}, "alpha=6"),
        ({"targets": ("query",)}, "attn_matrices"),
        ({"name": "houlsby"}, "architecture='lora', but the method here has None"),
    ],
)
def test_another_method_than_the_folders_is_refused(changes, message):
    folder = FOLDER / "bert" / "lora"
    settings = {**read_method(folder), **changes}
    if "name" in changes:
        settings = changes
    with pytest.raises(UserError, match=message):
        read_adapter(folder, build(folder, method=settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.popitem(), "lacks tensor"),
        (lambda tensors: tensors.update(more=np.zeros(1)), "unexpected tensor 'more'"),
        (lambda tensors: tensors.update({k: v[:2] for k, v in tensors.items()}), "has shape"),
    ],
)
def test_damaged_weights_are_refused(change, message, tmp_path):
    folder = shutil.copytree(FOLDER / "bert", tmp_path / "bert") / "lora"
    tensors = load_file(folder / "adapter.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter.safetensors")
    with pytest.raises(UserError, match=message):
        read_adapter(folder, build(folder))


@pytest.mark.parametrize(
    ("field", "value"),
    [("use_gating", True), ("leave_out", [0]), ("use_dora", True), ("vera_d", 0.1)],
)
def test_options_that_are_not_implemented_are_refused(field, value, tmp_path):
    folder = shutil.copytree(FOLDER / "bert", tmp_path / "bert") / "lora"
    edit(folder / "adapter_config.json", lambda config: config["config"].update({field: value}))
    with pytest.raises(UserError, match=field):
        read_adapter(folder, build(folder))


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_unions_of_gates_and_none_are_refused(tmp_path):
    folder = shutil.copytree(FOLDER / "bert" / "unipelt", tmp_path / "unipelt")
    change = lambda config: config["config"]["configs"][0].update(use_gating=False)  # noqa: E731
    edit(folder / "adapter_config.json", change)
    with pytest.raises(UserError, match="use_gating is of all parts or of none"):
        read_method(folder)


def test_a_union_of_other_parts_is_refused():
    folder = FOLDER / "bert" / "mam"
    first, second = read_method(folder)["parts"]
    for parts, message in (
        ((second, first), "architecture='prefix_tuning', but the method here has None"),
        ((first, second, "lora"), "a number of configs=2, but the method here has 3"),
        ((first, {**second, "scale": 2.0}), "scaling=4.0, but the method here has 2.0"),
    ):
        with pytest.raises(UserError, match=message):
            read_adapter(folder, build(folder, method={"name": "combination", "parts": parts}))


def test_other_setups_than_fusions_are_refused(tmp_path):
    single, fusion = FOLDER / "bert" / "pfeiffer", FOLDER / "bert" / "adapter_fusion"
    with pytest.raises(UserError, match="is no fusion of adapters, unlike the method"):
        read_adapter(single, build(fusion))
    with pytest.raises(UserError, match="is a fusion of adapters, unlike the method"):
        read_adapter(fusion, build(single))
    with pytest.raises(UserError, match="fuses 2 adapters, the method 3"):
        method = {"name": "adapter_fusion", "reduction": 4, "count": 3}
        read_adapter(fusion, build(fusion, method=method))
    folder = shutil.copytree(fusion, tmp_path / "fusion")
    edit(folder / "second" / "adapter_config.json", lambda c: c["config"].update(leave_out=[0]))
    with pytest.raises(UserError, match="a fusion of other adapters than pfeiffer's"):
        read_method(folder)
    edit(folder / "adapter_setup.json", lambda setup: setup["adapter_setup"].update(type="Stack"))
    with pytest.raises(UserError, match="is no Fuse of single adapters"):
        read_method(folder)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bert", {"name": "bitfit"}, "bitfit has no AdapterHub form"),
        ("t5", {"name": "ia3"}, "method.feedforward=none"),
        ("bert", {"name": "dora"}, "scales biases too, as that of '.*query'"),
        ("bert", {"name": "reft", "kind": "direft"}, "cannot say method.kind=direft"),
        ("bert", {"name": "combination", "parts": ("lora", "reft")}, "unions have no reft"),
        ("bert", {"name": "combination", "parts": ("lora", IA3)}, "one part of an architecture"),
        ("t5", {"name": "prefix_tuning"}, "set method.shift=False"),
        ("bert", {"name": "lora", "targets": "all-linear"}, "does not adapt projections 'output'"),
        ("bert", {"name": "lora", "targets": r".*(query|layer_1/.*value)"}, "in every layer"),
    ],
)
def test_methods_that_it_cannot_say_are_refused(family, settings, message, tmp_path):
    folder = FOLDER / family / "lora"
    model = build(folder, method=settings)
    with pytest.raises(UserError, match=message):
        export(folder, tmp_path, {}, model)
