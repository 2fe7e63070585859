"""AdapterHub folders: theirs give their outputs and gradients here, ours have their tensors."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.formats import adapter
from ftjax.formats.adapterhub.folder import is_fusion, read_adapter, read_method
from ftjax.formats.export import write_export
from ftjax.formats.folder import read_config
from ftjax.methods.reft import Reft, orthonormal
from tests.covering import covering, product
from tests.formats.adapterhub_cases import (
    FOLDER,
    LABELS,
    build,
    export,
    inputs,
    load,
    own_name,
    renamed,
    stored,
)
from tests.models.random_models import difference, quick

FAMILIES = ("bert", "roberta", "gpt2", "llama", "t5")
METHODS = ("houlsby", "pfeiffer", "parallel", "scaled_parallel", "lora", "ia3")
METHODS += ("prefix_tuning", "prefix_tuning_flat", "compacter", "compacter_pp")
CASES = [(family, method) for method in METHODS for family in FAMILIES]
CASES += [(family, method) for method in ("loreft", "mam") for family in ("bert", "llama", "t5")]
CASES += [("bert", "noreft"), ("bert", "unipelt"), ("gpt2", "unipelt"), ("t5", "unipelt")]
CASES += [("bert", "adapter_drop"), ("llama", "adapter_drop"), ("llama", "dora"), ("t5", "dora")]
CASES += [("bert", "lora_upper"), ("gpt2", "lora_upper"), ("t5", "lora_inner")]
FUSIONS = [("bert", "adapter_fusion"), ("gpt2", "adapter_fusion"), ("t5", "adapter_fusion")]
OTHER_HEADS = [("gpt2", "houlsby"), ("llama", "houlsby")]  # of two layers
COMPUTED = [  # between them every family and method; what differs by both is named twice
    *(("bert", method) for method in METHODS),
    *(("bert", method) for method in ("loreft", "noreft", "direft", "mam", "unipelt")),
    ("roberta", "pfeiffer"),
    *(("gpt2", method) for method in ("pfeiffer", "ia3", "prefix_tuning", "unipelt", "lora_upper")),
    *(("llama", method) for method in ("scaled_parallel", "adapter_drop", "ia3", "loreft")),
    *(("llama", method) for method in ("prefix_tuning_flat", "dora")),
    *(("t5", method) for method in ("houlsby", "compacter_pp", "mam", "unipelt", "loreft")),
    *(("t5", method) for method in ("lora_inner", "dora")),
    *FUSIONS,
]
# In families whose modules are not named or called as another's.
DIFFER = [("t5", "houlsby"), ("t5", "loreft"), ("llama", "prefix_tuning_flat"), ("llama", "ia3")]
DIFFER += [("gpt2", "prefix_tuning"), ("t5", "unipelt"), ("llama", "dora"), ("t5", "mam")]


def theirs(folder, output, model, params):
    """What trains of the method, or its gradients, by AdapterHub's names."""
    if isinstance(model.method, Reft):  # projections as they are
        model = replace(model, method=replace(model.method, kind="noreft"))
    export(folder, output, params, model, name="task")
    if is_fusion(output):
        return stored(output / "task_0,task_1", "adapter_fusion")
    return stored(output)


def parametrized(tensors, place):
    """Orthonormal rows as torch has them."""
    original = torch.tensor(tensors[f"{place}.parametrizations.weight.original"])
    linear = torch.nn.Linear(*original.T.shape, bias=False)
    torch.nn.utils.parametrizations.orthogonal(linear)
    base = torch.tensor(tensors[f"{place}.parametrizations.weight.0.base"])
    state = {"parametrizations.weight.original": original, "parametrizations.weight.0.base": base}
    linear.load_state_dict(state)
    return linear


def rotated(name, gradient, tensors):
    """Their name of a gradient of ours, and what it is of their parameter."""
    place = name.removesuffix(".weight")
    if f"{place}.parametrizations.weight.original" not in tensors:
        return name, gradient
    linear = parametrized(tensors, place)
    linear.weight.backward(torch.tensor(gradient))
    weight = linear.parametrizations.weight
    return f"{place}.parametrizations.weight.original", weight.original.grad.numpy()


@pytest.mark.parametrize(("family", "method"), product(COMPUTED, covering(COMPUTED, DIFFER)))
def test_their_adapter_gives_their_outputs_and_gradients(family, method, one_device, tmp_path):
    folder = FOLDER / family / method
    reference = load_file(folder / "reference.safetensors")
    model = build(folder, head=None)
    params = load(folder, model, one_device, head=False)
    if method == "direft":  # which folders cannot say
        model = build(folder, head=None, method={**read_method(folder), "kind": "direft"})
    trainable, frozen = model.partition.split(params)
    prefix = "full/" if method == "unipelt" else ""  # their gates see padding, ours do not
    batch = inputs(reference, prefix)
    if family == "t5" and method == "loreft":  # where theirs has the encoder's padding
        batch["decoder_attention_mask"] = batch["attention_mask"]

    @quick
    def run(trainable, batch, weight):
        def loss(trainable):
            hidden = model.apply({**frozen, **trainable}, batch)
            return (hidden * weight).sum(), hidden

        return jax.grad(loss, has_aux=True)(trainable)

    weight = reference[f"{prefix}weight"]
    found, hidden = run(trainable, batch, weight)
    real, wanted = np.any(weight != 0, -1), reference[f"{prefix}last_hidden_state"]
    assert difference(np.asarray(hidden)[real], wanted[real]) < 1e-4
    with safe_open(folder / "reference.safetensors", "numpy") as file:
        count = int(file.metadata()["parameters"])
    assert model.partition.counts(model.shapes)[0] == count
    mark = f"{prefix}gradients/"
    gradients = {
        own_name(name.removeprefix(mark)): array
        for name, array in reference.items()
        if name.startswith(mark)
    }
    tensors = {} if is_fusion(folder) else stored(folder)
    ours = theirs(folder, tmp_path, model, {**params, **found})
    ours = dict(rotated(name, array, tensors) for name, array in ours.items())
    assert set(ours) == set(gradients)
    largest = max(np.abs(array).max() for array in gradients.values())
    for name, array in gradients.items():
        if "fusion" in name and name.endswith("key.bias"):  # which moves all scores alike
            assert max(np.abs(array).max(), np.abs(ours[name]).max()) < 1e-3
        elif method != "dora" or name.endswith("m.weight"):  # through the norms, in theirs
            assert difference(ours[name], array, largest) < 1e-4, name


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "t5"])
def test_without_padding_in_scanned_layers(family, one_device):
    folder = FOLDER / family / "lora"
    reference = load_file(folder / "reference.safetensors")
    model = build(folder, head=None, segments="scan")
    params = load(folder, model, one_device, head=False)
    hidden = quick(model.apply)(params, inputs(reference, "full/"))
    assert difference(hidden, reference["full/last_hidden_state"]) < 1e-4


HEADS = [("bert", "houlsby"), *((family, "lora") for family in FAMILIES)]
HEADS += [*((family, "static") for family in ("bert", "roberta", "llama"))]
HEADS += [("gpt2", "adapter_fusion")]


@pytest.mark.parametrize(("family", "method"), product(HEADS, covering(HEADS)))
def test_their_heads_give_their_logits(family, method, one_device):
    folder = FOLDER / family / method
    reference = load_file(folder / "reference.safetensors")
    model = build(folder)
    params = load(folder, model, one_device)
    logits = quick(model.apply)(params, inputs(reference))
    assert difference(logits, reference["logits"]) < 1e-4


def assert_same_files(found, wanted, part):
    """Equal configurations, but for what is not read, and equal tensors."""
    texts = [(f / f"{part}_config.json").read_text() for f in (found, wanted)]
    configs = [json.loads(renamed(text)) for text in texts]
    assert all(config.pop("model_name").endswith("/base") for config in configs)
    for whole in (config["config"] for config in configs):
        for one in whole.get("configs", ()):
            if one.get("use_gating") and "alpha" in one:
                del one["alpha"]
    assert configs[0] == configs[1]
    ours, theirs = stored(found, part), stored(wanted, part)
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        if "parametrizations" not in name:
            np.testing.assert_array_equal(ours[name], array, name)
        elif name.endswith("original"):
            place = name.removesuffix(".parametrizations.weight.original")
            rows = [parametrized(x, place).weight.detach().numpy() for x in (ours, theirs)]
            np.testing.assert_allclose(*rows, atol=1e-6, err_msg=name)


def written(family, method, output, head=True):
    """Their folder, and ours of what was read from it; by T5 with scanned layers."""
    folder = FOLDER / family / method
    scanned = family == "t5" and method != "lora_inner"  # which is in some layers
    model = build(folder, segments="scan" if scanned else "auto")
    params = {path: np.zeros(leaf.shape) for path, leaf in model.shapes.items()}
    params |= read_adapter(folder, model, head=head)
    export(folder, output, params, model, name="task")
    return folder


@pytest.mark.parametrize(
    ("family", "method"), product(CASES, covering(CASES, [*DIFFER, *OTHER_HEADS]))
)
def test_what_is_written_is_what_was_read(family, method, tmp_path):
    other = (family, method) in OTHER_HEADS
    folder = written(family, method, tmp_path, head=not other)
    assert_same_files(tmp_path, folder, "adapter")
    # Of BERT we write a head of two layers, where theirs may read the base's pooler.
    if not other and (family != "bert" or method == "houlsby"):
        assert_same_files(tmp_path, folder, "head")


@pytest.mark.parametrize(("family", "method"), FUSIONS)
def test_a_fusion_is_written_as_it_was_read(family, method, tmp_path):
    folder = written(family, method, tmp_path)
    setups = [(f / "adapter_setup.json").read_text() for f in (tmp_path, folder)]
    assert json.loads(renamed(setups[0])) == json.loads(setups[1])
    for number, name in enumerate(("first", "second")):
        assert_same_files(tmp_path / f"task_{number}", folder / name, "adapter")
    assert_same_files(tmp_path / "task_0,task_1", folder / "first,second", "adapter_fusion")
    if family != "bert":
        assert_same_files(tmp_path / "task", folder / "task", "head")


@pytest.mark.parametrize("method", ["loreft", "noreft", "direft"])
def test_rows_of_reft_are_read_as_torch_computes_them(method):
    folder = FOLDER / "bert" / method
    assert read_method(folder)["kind"] == ("loreft" if method == "loreft" else "noreft")
    params, tensors = read_adapter(folder, build(folder), head=False), stored(folder)
    for layer in range(2):
        for number, end in enumerate(("first", "last")):
            found = params[f"encoder/layer_{layer}/reft_{end}_rotation"].T
            place = f"bert.encoder.layer.{layer}.reft_layer.refts.task.units.{number}.projection"
            if method == "loreft":
                wanted = parametrized(tensors, place).weight.detach().numpy()
            else:
                wanted = tensors[f"{place}.weight"]
            np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "units"),
    [({}, "01"), ({"first": 0, "last": 2}, "01"), ({"last": 2, "tied": True}, "0")],
)
def test_reft_has_a_unit_for_each_end(settings, units, tmp_path):
    """The library makes both, also where one has no tokens."""
    model = build(FOLDER / "bert" / "loreft", method={"name": "reft", "rank": 3, **settings})
    random = np.random.default_rng(0)
    params = {p: random.normal(size=x.shape).astype("f") for p, x in model.shapes.items()}
    export(FOLDER / "bert" / "loreft", tmp_path, params, model)
    tensors, end = stored(tmp_path), "last" if settings.get("first") == 0 else "first"
    assert {name.split(".units.")[1][0] for name in tensors} == set(units)
    for unit in units:
        place = f"bert.encoder.layer.1.reft_layer.refts.ftjax.units.{unit}.projection"
        wanted = orthonormal(params[f"encoder/layer_1/reft_{end}_rotation"])
        found = parametrized(tensors, place).weight.detach().numpy()
        np.testing.assert_allclose(found, wanted.T, atol=1e-6)
    back = read_adapter(tmp_path, build(FOLDER / "bert" / "x", method=read_method(tmp_path)))
    assert {path for path in back if "reft" in path} == {path for path in params if "reft" in path}


def test_scales_that_the_library_leaves_out_are_in_the_tensors(tmp_path):
    """α/r of DoRA's norms, and of LoRA under gates."""
    lora = {"rank": 2, "alpha": 8.0}
    unipelt = {"name": "unipelt", "parts": ({"name": "lora", **lora}, "pfeiffer")}
    for settings in ({"name": "dora", **lora}, unipelt):
        folder, output = FOLDER / "llama" / "dora", tmp_path / settings["name"]
        model = build(folder, method=settings)
        params = {p: np.ones(x.shape, "f") for p, x in model.shapes.items()}
        export(folder, output, params, model)
        found = stored(output)
        assert {x.max() for name, x in found.items() if name.endswith("lora_B")} == {4.0}
        assert {x.max() for name, x in found.items() if name.endswith("lora_A")} == {1.0}
        for path, array in read_adapter(output, model).items():
            np.testing.assert_array_equal(array, params[path], path)


def test_a_fusions_folder_is_loaded_into_a_model(one_device):
    folder = FOLDER / "bert" / "adapter_fusion"
    model = build(folder, method=adapter.read_method(folder))
    params, _ = pretrained.load(folder.parent / "base", model, one_device, jax.random.key(0))
    params, absent = adapter.load_into(model, params, folder)
    assert not absent and model.method.number == 2
    for path, array in read_adapter(folder, model).items():
        np.testing.assert_array_equal(params[path], array, path)


def test_mean_pooling_has_no_head_there(tmp_path):
    folder = FOLDER / "bert" / "lora"
    task = {"head": "classification", "labels": 3, "pooling": "mean"}
    method = methods.create(read_method(folder))
    model = build_tuned(read_config(folder.parent / "base"), method, {}, task)
    params, output = read_adapter(folder, model, head=False), tmp_path / "out"
    size = model.shapes["classifier/kernel"].shape
    params |= {"classifier/kernel": np.ones(size), "classifier/bias": np.zeros(size[1])}
    note = write_export("adapterhub", output, folder.parent / "base", model, params, LABELS)
    assert "AdapterHub has no head for it" in note and note in (output / "README.md").read_text()
    assert not list(output.glob("*head*")) and (output / "2_Dense").is_dir()  # ours
    tensors = load_file(output / "adapter.safetensors")
    assert all(".loras.ftjax.lora_" in name for name in tensors) and len(tensors) == 8
