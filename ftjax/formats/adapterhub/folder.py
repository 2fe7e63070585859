"""AdapterHub adapter folders, in and out, as the library `adapters` 1.3 writes and reads them.

A folder has `adapter_config.json`, `adapter.safetensors` (or `pytorch_adapter.bin`) and, with a
head, `head_config.json` and `model_head.safetensors` (or `pytorch_model_head.bin`). The adapter's
name is part of the tensors' names.

An AdapterFusion has what `save_adapter_setup` writes, and `load_adapter_setup` loads in one call:
`adapter_setup.json`; a folder of each adapter; one named by all of them, with commas, for
`adapter_fusion_config.json` and `model_adapter_fusion.safetensors`; and one of the head.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ftjax.errors import require
from ftjax.formats.adapterhub.config import (
    About,
    HeadConfig,
    HubConfig,
    check_config,
    config_of,
    settings_of,
)
from ftjax.formats.adapterhub.names import family_of, from_tensors, to_tensors
from ftjax.formats.folder import read_config, read_json
from ftjax.formats.guard import named, reading
from ftjax.formats.hf import mapping
from ftjax.formats.hf.weights import arrays_of, largest_axis
from ftjax.formats.jsons import check
from ftjax.formats.sentence_transformers import writing as sentences
from ftjax.methods.fusion import AdapterFusion, alone, placed_as
from ftjax.paths import Flat
from ftjax.tuned import Tuned

VERSION = "adapters.1.3.0"
NAME = "ftjax"
SETUP = "adapter_setup.json"
# Of an adapter, of a fusion, of a head: its configuration, its tensors, and how these were before.
ADAPTER = ("adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin")
FUSION = ("adapter_fusion_config.json", "model_adapter_fusion.safetensors")
FUSION += ("pytorch_model_adapter_fusion.bin",)
HEAD = ("head_config.json", "model_head.safetensors", "pytorch_model_head.bin")
HEAD_CONFIG = {
    "activation_function": None,
    "bias": True,
    "dropout_prob": None,
    "head_type": "classification",
    "layers": 1,
    "use_pooler": False,
}
UNUSED = {"dropout_prob", "label2id"}  # fields that do not change what a head computes
LEAVES = {"kernel": "weight", "bias": "bias"}


def _head(tuned: Tuned) -> tuple[dict[str, Any], dict[str, int]] | None:
    """AdapterHub's flexible head that computes what ours does.

    BERT's has two layers, the first in the place of the base's pooler, which computes the same.

    Returns:
        Its configuration, and our modules → its numbers; None where there is no such head.
    """
    if tuned.model.head != "classification" or tuned.model.pooling == "mean":
        return None
    head, config = (
        tuned.config.heads["classification"],
        HEAD_CONFIG | {"num_labels": tuned.model.labels},
    )
    if head.activation is None:
        return config | {"bias": False}, {"classifier": 1}
    config |= {"activation_function": head.activation, "layers": 2}
    return config, {"pooler": 1, "classifier": 4}


def _read_head(folder: Path, tuned: Tuned) -> Flat:
    """The head's parameters: of a flexible head, or of `transformers`' own classifier.

    Raises:
        UserError: ours computes otherwise.
    """
    read = _described(folder / HEAD[0], HeadConfig)
    if read["config"] is None:
        head, theirs = tuned.config.heads.get(tuned.model.head), read.get("model_class")
        same = head is not None and theirs == head.architecture
        require(same, f"{folder / HEAD[0]} is of none of this model's heads: {theirs}")
        prefixes = tuned.names.head
    else:
        modules = _numbers_of(folder, HEAD_CONFIG | read["config"], tuned)
        prefixes = {module: f"heads.{read['name']}.{n}" for module, n in modules.items()}
    file, tensors, params = _tensors_file(folder, HEAD), _tensors(folder, HEAD), {}
    for module, prefix in prefixes.items():
        for leaf, end in LEAVES.items():
            path, tensor = f"{module}/{leaf}", f"{prefix}.{end}"
            if path in tuned.shapes:
                require(tensor in tensors, f"{file}: the head lacks tensor {tensor!r}")
                array = tensors[tensor].T if leaf == "kernel" else tensors[tensor]
                same = array.shape == tuned.shapes[path].shape
                require(same, f"{file}: tensor {tensor!r} has shape {tensors[tensor].shape}")
                params[path] = np.ascontiguousarray(array, np.float32)
    return params


def _numbers_of(folder: Path, config: Mapping[str, Any], tuned: Tuned) -> dict[str, int]:
    """Our modules → the numbers of a flexible head."""
    head, modules = _head(tuned) or ({}, {})
    if config["use_pooler"] and modules and "pooler" not in tuned.names.head:
        pooler = {"activation_function": config["activation_function"], "layers": 1}
        head, modules = head | pooler | {"use_pooler": True}, {"classifier": 1}
    same = all(config.get(key) == head.get(key) for key in config.keys() - UNUSED)
    require(same, f"{folder / HEAD[0]} is of none of this model's heads: {config}")
    return modules


def _tensors(folder: Path, files: tuple[str, str, str]) -> dict[str, np.ndarray]:
    return arrays_of(_tensors_file(folder, files))


def _tensors_file(folder: Path, files: tuple[str, str, str]) -> Path:
    _, safe, pickled = files
    return folder / (safe if (folder / safe).exists() else pickled)


def _described(file: Path, schema: type) -> dict[str, Any]:
    """What a configuration's file says of an adapter or a head, with its "config" sound."""
    read = read_json(file)
    check(file, read, About)
    lacking = [key for key in ("config", "name") if key not in read]
    require(not lacking, f"{file} lacks {lacking}")
    if schema is not HeadConfig:
        require(read["config"] is not None, f"{file}: config=None, and it should be an object")
    _check(file, read["config"] or {}, schema, "config.")
    return read


def _check(file: Path, config: Mapping[str, Any], schema: type, inside: str) -> None:
    """Raises UserError where a configuration, or one that it unites, is not what it may be."""
    check(file, config, schema, inside)
    united = config.get("architecture") == "union" and schema is HubConfig
    require(not united or config.get("configs"), f"{file}: {inside}configs are absent")
    for part in config["configs"] if united else ():
        deeper = part.get("architecture") == "union"
        require(not deeper, f"{file}: a union of unions is not implemented")
        _check(file, part, schema, f"{inside}configs.")


def labels_in(folder: Path) -> tuple[str, ...]:
    """What the outputs of a folder's head are called, in order; empty where it says nothing."""
    read = _described(folder / HEAD[0], HeadConfig)
    numbers = (read["config"] or {}).get("label2id") or read.get("label2id") or {}
    return tuple(sorted(numbers, key=numbers.get))


def is_fusion(folder: Path) -> bool:
    """Whether a folder is of several adapters and what fuses them."""
    return (folder / SETUP).exists()


def _fused(folder: Path) -> list[str]:
    """Names of the adapters that a setup fuses."""
    with reading(folder / SETUP, "is no setup of adapters"):
        setup = read_json(folder / SETUP)["adapter_setup"]
        single = all(child["type"] == "single" for child in setup["children"])
        fuses = setup["type"] == "Fuse" and single and setup["children"]
        require(fuses, f"{folder / SETUP} is no Fuse of single adapters")
        names = [child["children"][0] for child in setup["children"]]
        for name in names:
            own = isinstance(name, str) and Path(name).name == name and name != ".."
            require(own, f"names {name!r}, which is no folder beside it")
        return names


def read_method(folder: Path) -> dict[str, Any]:
    """`method.*` of an adapter folder: {"name": ..., hyperparameter: value, ...}.

    Raises:
        UserError: the method is not implemented.
    """
    if is_fusion(folder):
        folders = [folder / name for name in _fused(folder)]
        first, *others = (read_method(inside) for inside in folders)
        alike = first["name"] == "pfeiffer" and all(other == first for other in others)
        require(alike, f"{folder}: a fusion of other adapters than pfeiffer's, all of one kind")
        return {**first, "name": "adapter_fusion", "adapters": tuple(map(str, folders))}
    read, tensors = _described(folder / ADAPTER[0], HubConfig), _tensors(folder, ADAPTER)
    with named(folder / ADAPTER[0]):
        settings = settings_of(read["config"], read.get("model_type", ""), tensors)
        for part in (settings, *settings.get("parts", ())):
            large = max(part.get("length", 0), part.get("projection", 0))
            problem = f"a prefix of {large} features or tokens, and no tensor is as large"
            require(large <= largest_axis(tensors), problem)
        return settings


def read_adapter(folder: Path, tuned: Tuned, head: bool = True) -> Flat:
    """The parameters that a folder has: those that the method adds and, if any, the head's.

    Args:
        folder: of an adapter, or of a fusion, whose adapters' parameters are among them.
        tuned: a model under the method that `read_method` tells.
        head: whether the head is wanted.

    Raises:
        UserError: the folder is of another method, model or head.
    """
    fusion, place = is_fusion(folder), folder
    same = fusion == isinstance(tuned.method, AdapterFusion)
    require(same, f"{folder} is {'a' if fusion else 'no'} fusion of adapters, unlike the method")
    if fusion:
        params = _read_fusion(folder, tuned)
        head_name = str(read_json(folder / SETUP).get("head_setup"))
        own = Path(head_name).name == head_name != ".."
        require(own, f"{folder / SETUP}: head_setup={head_name!r} is no folder beside it")
        place = folder / head_name
    else:
        params = _read_one(folder, tuned, ADAPTER)
    if head and (place / HEAD[0]).exists():
        params |= _read_head(place, tuned)
    return params


def _read_one(folder: Path, tuned: Tuned, files: tuple[str, str, str]) -> Flat:
    read = _described(folder / files[0], HubConfig)
    with named(folder / files[0]):
        family_of(read.get("model_type", ""))
        check_config(read["config"], tuned, read.get("model_type", ""))
    tensors = _tensors(folder, files)
    with named(_tensors_file(folder, files)):
        return from_tensors(tuned, tensors, read.get("model_type", ""), read["name"])


def _read_fusion(folder: Path, tuned: Tuned) -> Flat:
    names = _fused(folder)
    number = tuned.method.number
    require(len(names) == number, f"{folder} fuses {len(names)} adapters, the method {number}")
    params = _read_one(folder / ",".join(names), _fusion_alone(tuned), FUSION)
    for number, name in enumerate(names):
        adapter = _read_one(folder / name, _adapter_alone(tuned, number), ADAPTER)
        params |= placed_as(adapter, number)
    return params


def _adapter_alone(tuned: Tuned, number: int) -> Tuned:
    """A fusion's model as of one of its adapters."""
    shapes = {**tuned.base.shapes, **alone(tuned.shapes, number)}
    return replace(tuned, method=tuned.method.single, shapes=shapes)


def _fusion_alone(tuned: Tuned) -> Tuned:
    """A fusion's model without its adapters."""
    own = {path: leaf for path, leaf in tuned.shapes.items() if "/fusion/" in path}
    return replace(tuned, shapes={**tuned.base.shapes, **own})


def export_adapterhub(
    output: Path,
    source: Path,
    tuned: Tuned,
    params: Flat,
    names: tuple[str, ...],
    name: str = NAME,
    base: str = "",
) -> str:
    """Writes an adapter that `adapters` loads (with `use_safetensors=True`), without the base.

    Args:
        output: the folder.
        source: of the base model.
        tuned: the model under its method.
        params: flat parameters.
        names: of the labels.
        name: of the adapter and of its head; adapters of a fusion are numbered after it.
        base: what others find the base model by; empty: its folder.

    Returns:
        What is left out; empty where all is written.

    Raises:
        UserError: AdapterHub has no such method, or the family is not implemented.
    """
    model_type = read_config(source)["model_type"]
    about = {
        "hidden_size": tuned.config.hidden_size,
        "model_class": family_of(model_type).model_class,
        "model_name": base or str(source),
        "model_type": model_type,
        "name": name,
        "version": VERSION,
    }
    place, call, note = output, "load_adapter(..., use_safetensors=True)", ""
    if isinstance(tuned.method, AdapterFusion):
        place = output / name
        call = "load_adapter_setup(..., set_active=True, use_safetensors=True)"
        _write_fusion(output, tuned, params, about)
    else:
        _write_one(output, tuned, params, about, ADAPTER)
    if sentences.plain_encoder(tuned):
        note = f"AdapterHub has no head for it: {sentences.described(tuned)}"
    elif tuned.model.head and not tuned.base.of_words:  # whose head is the base's
        _write_head(place, tuned, params, about, names)
        if _head(tuned) is None:
            note = f"The head is that of `{tuned.config.heads[tuned.model.head].architecture}`."
    (output / "README.md").write_text(
        f"---\nlibrary_name: adapters\n---\n\nAn adapter trained with ftjax, for "
        f"`{call}`. Labels: {', '.join(names)}.\n{note}\n",
        encoding="utf-8",
    )
    return note


def _write_one(
    folder: Path,
    tuned: Tuned,
    params: Flat,
    about: Mapping[str, Any],
    files: tuple[str, str, str],
) -> None:
    config = config_of(tuned, about["model_type"])
    tensors = to_tensors(tuned, params, about["model_type"], about["name"])
    _write(folder, files, {"config": config, **about}, tensors)


def _write_fusion(output: Path, tuned: Tuned, params: Flat, about: Mapping[str, Any]) -> None:
    names = [f"{about['name']}_{number}" for number in range(tuned.method.number)]
    for number, name in enumerate(names):
        single, own = _adapter_alone(tuned, number), alone(params, number)
        _write_one(output / name, single, own, {**about, "name": name}, ADAPTER)
    whole = {**about, "name": ",".join(names), "adapter_names": names}
    _write_one(output / whole["name"], _fusion_alone(tuned), params, whole, FUSION)
    children = [{"type": "single", "children": [name]} for name in names]
    setup = {"adapter_setup": {"type": "Fuse", "children": children}, "version": VERSION}
    headless = sentences.plain_encoder(tuned) or tuned.base.of_words
    setup["head_setup"] = None if headless else about["name"]
    _write_json(output / SETUP, setup)


def _write_head(
    folder: Path, tuned: Tuned, params: Flat, about: Mapping[str, Any], names: tuple[str, ...]
) -> None:
    label2id = {label: i for i, label in enumerate(names)}
    if _head(tuned) is None:  # as of a model of transformers with adapters put into it
        own = {path: np.asarray(x) for path, x in params.items() if tuned.names.in_head(path)}
        architecture = tuned.config.heads[tuned.model.head].architecture
        static = {**about, "config": None, "model_class": architecture, "label2id": label2id}
        tensors = {k: np.float32(x) for k, x in mapping.to_tensors(own, tuned.names, True).items()}
        _write(folder, HEAD, static, tensors)
        return
    config, modules = _head(tuned)
    config["label2id"] = label2id
    tensors = {}
    for module, number in modules.items():
        for leaf, end in LEAVES.items():
            if f"{module}/{leaf}" in params:
                array = np.asarray(params[f"{module}/{leaf}"], np.float32)
                array = np.ascontiguousarray(array.T if leaf == "kernel" else array)
                tensors[f"heads.{about['name']}.{number}.{end}"] = array
    _write(folder, HEAD, {"config": config, **about}, tensors)


def _write(
    folder: Path,
    files: tuple[str, str, str],
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / files[0], config)
    save_file(dict(tensors), folder / files[1], metadata={"format": "pt"})


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
