"""AdapterHub adapter folders, in and out, as the library `adapters` 1.3 writes and reads them.

A folder has `adapter_config.json`, `adapter.safetensors` (or `pytorch_adapter.bin`) and, with a
head, `head_config.json` and `model_head.safetensors` (or `pytorch_model_head.bin`). The adapter's
name is part of the tensors' names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ftjax.errors import UserError, require
from ftjax.formats.adapterhub_config import check_config, config_of, settings_of
from ftjax.formats.adapterhub_names import family_of, from_tensors, to_tensors
from ftjax.formats.folder import read_config, read_json
from ftjax.formats.pickled import read_tensors
from ftjax.paths import Flat
from ftjax.tuned import Tuned

VERSION = "adapters.1.3.0"
NAME = "ftjax"
HEAD = {
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
    head, config = tuned.config.heads["classification"], HEAD | {"num_labels": tuned.model.labels}
    if head.activation is None:
        return config | {"bias": False}, {"classifier": 1}
    config |= {"activation_function": head.activation, "layers": 2}
    return config, {"pooler": 1, "classifier": 4}


def _read_head(folder: Path, tuned: Tuned) -> Flat:
    """The head's parameters: of a flexible head, or of `transformers`' own classifier.

    Raises:
        UserError: ours computes otherwise.
    """
    read = read_json(folder / "head_config.json")
    if read["config"] is None:
        head = tuned.config.heads.get(tuned.model.head)
        same = head is not None and read["model_class"] == head.architecture
        require(same, f"the head of {folder} is none of this model's: {read['model_class']}")
        places = tuned.names.head
    else:
        modules = _numbers_of(folder, HEAD | read["config"], tuned)
        places = {module: f"heads.{read['name']}.{n}" for module, n in modules.items()}
    tensors = _tensors(folder, "model_head.safetensors", "pytorch_model_head.bin")
    params = {}
    for module, place in places.items():
        for leaf, end in LEAVES.items():
            path, tensor = f"{module}/{leaf}", f"{place}.{end}"
            if path in tuned.shapes:
                require(tensor in tensors, f"{folder}: the head lacks tensor {tensor!r}")
                array = tensors[tensor].T if leaf == "kernel" else tensors[tensor]
                same = array.shape == tuned.shapes[path].shape
                require(same, f"{folder}: tensor {tensor!r} has shape {tensors[tensor].shape}")
                params[path] = np.ascontiguousarray(array, np.float32)
    return params


def _numbers_of(folder: Path, config: Mapping[str, Any], tuned: Tuned) -> dict[str, int]:
    """Our modules → the numbers of a flexible head."""
    wanted, modules = _head(tuned) or ({}, {})
    if config["use_pooler"] and modules and "pooler" not in tuned.names.head:
        one = {"activation_function": config["activation_function"], "layers": 1}
        wanted, modules = wanted | one | {"use_pooler": True}, {"classifier": 1}
    same = all(config.get(key) == wanted.get(key) for key in config.keys() - UNUSED)
    require(same, f"the head of {folder} is none of this model's: {config}")
    return modules


def _tensors(folder: Path, safe: str, pickled: str) -> dict[str, np.ndarray]:
    if not (folder / safe).exists():
        return read_tensors(folder / pickled)
    try:
        return load_file(folder / safe)
    except SafetensorError as error:
        raise UserError(f"{folder / safe} is corrupt: {error}") from error


def read_method(folder: Path) -> dict[str, Any]:
    """`method.*` of an adapter folder: {"name": ..., hyperparameter: value, ...}.

    Raises:
        UserError: the method is not implemented.
    """
    read = read_json(folder / "adapter_config.json")
    return settings_of(read["config"], read["model_type"])


def read_adapter(folder: Path, tuned: Tuned, head: bool = True) -> Flat:
    """The parameters that a folder has: those that the method adds and, if any, the head's.

    Args:
        folder: of an adapter.
        tuned: a model under the method that `read_method` tells.
        head: whether the head is wanted.

    Raises:
        UserError: the folder is of another method, model or head.
    """
    read = read_json(folder / "adapter_config.json")
    name, model_type = read["name"], read["model_type"]
    check_config(read["config"], tuned, model_type)
    tensors = _tensors(folder, "adapter.safetensors", "pytorch_adapter.bin")
    params = from_tensors(tuned, tensors, model_type, name)
    if head and (folder / "head_config.json").exists():
        params |= _read_head(folder, tuned)
    return params


def export_adapterhub(
    output: Path,
    source: Path,
    tuned: Tuned,
    params: Flat,
    names: tuple[str, ...],
    name: str = NAME,
) -> str:
    """Writes an adapter that `adapters` loads (with `use_safetensors=True`), without the base.

    Args:
        output: the folder.
        source: of the base model.
        tuned: the model under its method.
        params: flat parameters.
        names: of the labels.
        name: of the adapter and of its head.

    Returns:
        What is left out; empty where all is written.

    Raises:
        UserError: AdapterHub has no such method, or the family is not implemented.
    """
    model_type = read_config(source)["model_type"]
    family = family_of(model_type)
    about = {
        "hidden_size": tuned.config.hidden_size,
        "model_class": family.model_class,
        "model_name": str(source),
        "model_type": model_type,
        "name": name,
        "version": VERSION,
    }
    config = config_of(tuned, model_type)
    tensors = to_tensors(tuned, params, model_type, name)
    head = _head(tuned)
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "adapter_config.json", {"config": config, **about})
    save_file(tensors, output / "adapter.safetensors", metadata={"format": "pt"})
    note = ""
    if head is None:
        note = "AdapterHub has no head that computes as this model's does: it is left out."
    else:
        config, modules = head
        config["label2id"] = {label: i for i, label in enumerate(names)}
        tensors = {}
        for module, number in modules.items():
            for leaf, end in LEAVES.items():
                if f"{module}/{leaf}" in params:
                    array = np.asarray(params[f"{module}/{leaf}"], np.float32)
                    array = np.ascontiguousarray(array.T if leaf == "kernel" else array)
                    tensors[f"heads.{name}.{number}.{end}"] = array
        _write(output / "head_config.json", {"config": config, **about})
        save_file(tensors, output / "model_head.safetensors", metadata={"format": "pt"})
    (output / "README.md").write_text(
        f"---\nlibrary_name: adapters\n---\n\nAn adapter trained with ftjax, for "
        f"`load_adapter(..., use_safetensors=True)`. Labels: {', '.join(names)}.\n{note}\n",
        encoding="utf-8",
    )
    return note


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
