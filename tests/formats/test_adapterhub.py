"""AdapterHub folders: theirs give their outputs and gradients here, ours have their tensors."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ftjax import methods, tuned
from ftjax.errors import UserError
from ftjax.formats.adapterhub import export_adapterhub, read_adapter, read_method
from ftjax.formats.adapterhub_names import to_tensors
from ftjax.formats.export import write_export
from ftjax.formats.folder import read_config
from ftjax.formats.pickled import read_tensors
from tests.models.made import difference, quick

FOLDER = Path(__file__).parents[1] / "fixtures" / "adapterhub"
LABELS = ("LABEL_0", "LABEL_1", "LABEL_2")
FAMILIES = ("bert", "roberta", "gpt2", "llama", "t5")
METHODS = ("houlsby", "pfeiffer", "parallel", "scaled_parallel", "lora", "ia3")
METHODS += ("prefix_tuning", "prefix_tuning_flat", "compacter", "compacter_pp")
CASES = [(family, method) for method in METHODS for family in FAMILIES]
CASES += [("bert", "adapter_drop"), ("llama", "adapter_drop")]
OTHER_HEADS = [("gpt2", "houlsby"), ("llama", "houlsby")]  # of two layers
COMPUTED = [  # between them every family and method; what differs by both is named twice
    *(("bert", method) for method in METHODS),
    ("roberta", "pfeiffer"),
    ("gpt2", "pfeiffer"),
    ("gpt2", "lora"),
    ("gpt2", "ia3"),
    ("gpt2", "prefix_tuning"),
    ("llama", "scaled_parallel"),
    ("llama", "adapter_drop"),
    ("llama", "ia3"),
    ("llama", "prefix_tuning_flat"),
    ("t5", "houlsby"),
    ("t5", "parallel"),
    ("t5", "compacter"),
    ("t5", "prefix_tuning"),
]
NAMES = [f"{family}-{method}" for family, method in CASES]


def build(folder, head="classification", method=None, **settings):
    """The base of a fixture under the method that its folder tells."""
    task = {"head": head, "labels": len(LABELS), "pooling": "cls"}
    method = methods.create(method or read_method(folder))
    return tuned.build(read_config(folder.parent / "base"), method, settings, task)


def load(folder, model, mesh, head=True):
    """The base's parameters and the adapter's."""
    key = jax.random.key(0)
    params, _ = tuned.load(folder.parent / "base", model, mesh, key)
    return {**params, **read_adapter(folder, model, head)}


def inputs(reference, prefix=""):
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    return {n: reference[f"{prefix}{n}"] for n in names if f"{prefix}{n}" in reference}


def own_name(tensor):
    """The model's name of a tensor that each layer holds too, as prefixes."""
    return re.sub(r"^(\w+)\..*\.pool\.", r"\1.prefix_tuning.", tensor)


def stored(folder, part="adapter"):
    """The tensors of an adapter or of its head, each once."""
    safe = {"adapter": "adapter.safetensors", "head": "model_head.safetensors"}[part]
    if (folder / safe).exists():
        return load_file(folder / safe)
    pickled = {"adapter": "pytorch_adapter.bin", "head": "pytorch_model_head.bin"}[part]
    return {own_name(name): array for name, array in read_tensors(folder / pickled).items()}


def theirs(model, params, family):
    """The method's parameters, or their gradients, by AdapterHub's names."""
    return to_tensors(model, params, family, "task")


@pytest.mark.parametrize(("family", "method"), COMPUTED)
def test_their_adapter_gives_their_outputs_and_gradients(family, method, one_device):
    folder = FOLDER / family / method
    reference = load_file(folder / "reference.safetensors")
    model = build(folder, head=None)
    params = load(folder, model, one_device, head=False)
    trainable, frozen = model.partition.split(params)

    @quick
    def run(trainable, batch, weight):
        def loss(trainable):
            hidden = model.apply({**frozen, **trainable}, batch)
            return (hidden * weight).sum(), hidden

        return jax.grad(loss, has_aux=True)(trainable)

    found, hidden = run(trainable, inputs(reference), reference["weight"])
    real = reference["attention_mask"] > 0
    wanted = reference["last_hidden_state"]
    assert difference(np.asarray(hidden)[real], wanted[real]) < 1e-4
    with safe_open(folder / "reference.safetensors", "numpy") as file:
        count = int(file.metadata()["parameters"])
    assert model.partition.counts(model.shapes)[0] == count
    gradients = {
        own_name(name.removeprefix("gradients/")): array
        for name, array in reference.items()
        if name.startswith("gradients/")
    }
    assert set(gradients) == set(theirs(model, params, family))
    largest = max(np.abs(array).max() for array in gradients.values())
    for name, array in theirs(model, found, family).items():
        assert difference(array, gradients[name], largest) < 1e-4, name


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "t5"])
def test_without_padding_in_scanned_layers(family, one_device):
    folder = FOLDER / family / "lora"
    reference = load_file(folder / "reference.safetensors")
    model = build(folder, head=None, segments="scan")
    params = load(folder, model, one_device, head=False)
    hidden = quick(model.apply)(params, inputs(reference, "full/"))
    assert difference(hidden, reference["full/last_hidden_state"]) < 1e-4


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("bert", "houlsby"),
        *((family, "lora") for family in ("bert", "roberta", "gpt2", "llama", "t5")),
        *((family, "static") for family in ("bert", "roberta", "llama")),
    ],
)
def test_their_heads_give_their_logits(family, method, one_device):
    folder = FOLDER / family / method
    reference = load_file(folder / "reference.safetensors")
    model = build(folder)
    params = load(folder, model, one_device)
    logits = quick(model.apply)(params, inputs(reference))
    assert difference(logits, reference["logits"]) < 1e-4


def export(folder, output, params, model, **options):
    base = folder.parent / "base"
    export_adapterhub(output, base, model, params, LABELS, **options)


def assert_same_files(found, wanted, part):
    """Equal configurations, but for the base's path, and equal tensors."""
    configs = [json.loads((f / f"{part}_config.json").read_text()) for f in (found, wanted)]
    assert all(config.pop("model_name").endswith("/base") for config in configs)
    assert configs[0] == configs[1]
    ours, theirs = stored(found, part), stored(wanted, part)
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, name)


@pytest.mark.parametrize(("family", "method"), CASES, ids=NAMES)
def test_what_is_written_is_what_was_read(family, method, tmp_path):
    folder = FOLDER / family / method
    model = build(folder)
    params = {path: np.zeros(leaf.shape) for path, leaf in model.shapes.items()}
    params |= read_adapter(folder, model, head=(family, method) not in OTHER_HEADS)
    export(folder, tmp_path, params, model, name="task")
    assert_same_files(tmp_path, folder, "adapter")
    # Of BERT we write a head of two layers, where theirs may read the base's pooler.
    if (family, method) not in OTHER_HEADS and (family != "bert" or method == "houlsby"):
        assert_same_files(tmp_path, folder, "head")


@pytest.mark.parametrize(("family", "method"), OTHER_HEADS)
def test_a_head_that_computes_otherwise_is_refused(family, method):
    folder = FOLDER / family / method
    with pytest.raises(UserError, match="none of this model's"):
        read_adapter(folder, build(folder))


def test_mean_pooling_has_no_head_there(tmp_path):
    folder = FOLDER / "bert" / "lora"
    task = {"head": "classification", "labels": 3, "pooling": "mean"}
    method = methods.create(read_method(folder))
    model = tuned.build(read_config(folder.parent / "base"), method, {}, task)
    params, output = read_adapter(folder, model, head=False), tmp_path / "out"
    note = write_export("adapterhub", output, folder.parent / "base", model, params, LABELS)
    assert "no head" in note and note in (output / "README.md").read_text()
    assert not list(output.glob("*head*"))
    tensors = load_file(output / "adapter.safetensors")
    assert all(".loras.ftjax.lora_" in name for name in tensors) and len(tensors) == 8


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
    with pytest.raises(UserError, match="cannot be read"):
        read_tensors(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2}, "r=4"),
        ({"alpha": 3.0}, "alpha=6"),
        ({"targets": ("query",)}, "attn_matrices"),
        ({"name": "houlsby"}, "r=4|alpha|architecture"),
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
    config = json.loads((folder / "adapter_config.json").read_text())
    config["config"][field] = value
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=field):
        read_adapter(folder, build(folder))


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("bert", {"name": "bitfit"}, "bitfit has no AdapterHub form"),
        ("t5", {"name": "ia3"}, "method.feedforward=none"),
        ("bert", {"name": "dora"}, "dora has no AdapterHub form"),
        ("t5", {"name": "prefix_tuning"}, "set method.shift=False"),
        ("bert", {"name": "lora", "targets": "all-linear"}, "does not adapt projections 'output'"),
        ("bert", {"name": "lora", "targets": r".*layer_1/.*query"}, "all layers or none"),
    ],
)
def test_methods_that_it_cannot_say_are_refused(family, settings, message, tmp_path):
    folder = FOLDER / family / "lora"
    model = build(folder, method=settings)
    with pytest.raises(UserError, match=message):
        export(folder, tmp_path, {}, model)
