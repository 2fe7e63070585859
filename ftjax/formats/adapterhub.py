"""AdapterHub adapter folders, in and out, as the library `adapters` 1.3 writes and reads them.

A folder has `adapter_config.json`, `adapter.safetensors` (or `pytorch_adapter.bin`) and, with a
head, `head_config.json` and `model_head.safetensors` (or `pytorch_model_head.bin`). The adapter's
name is part of the tensors' names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ftjax.errors import UserError, nearest, require
from ftjax.formats.adapterhub_config import check_config, config_of, settings_of
from ftjax.formats.folder import read_config, read_json
from ftjax.formats.hf import Part
from ftjax.formats.pickled import read_tensors
from ftjax.paths import Flat, expand
from ftjax.tuned import Tuned

VERSION = "adapters.1.3.0"
NAME = "ftjax"


@dataclass(frozen=True)
class Family:
    """What AdapterHub calls the parts of a family.

    Attributes:
        model_class: with flexible heads.
        prefix: of the base model's tensors in it.
        attention, output: the modules within a layer that hold its bottleneck adapters; empty
            where that is the module that holds the norm.
    """

    model_class: str
    prefix: str
    attention: str = ""
    output: str = ""


_APART = {"attention": ".attention_adapters", "output": ".output_adapters"}
FAMILIES = {
    "bert": Family("BertAdapterModel", "bert"),
    "roberta": Family("RobertaAdapterModel", "roberta"),
    "xlm-roberta": Family("XLMRobertaAdapterModel", "roberta"),
    "gpt2": Family("GPT2AdapterModel", "transformer", **_APART),
    "llama": Family("LlamaAdapterModel", "model", **_APART),
    "mistral": Family("MistralAdapterModel", "model", **_APART),
    "t5": Family("T5AdapterModel", "transformer"),
    "mt5": Family("MT5AdapterModel", "transformer"),
}
PROJECTION = {"lora_a": "loras.{}.lora_A", "lora_b": "loras.{}.lora_B"}
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
BLOCK = {
    "adapter/down_kernel": "adapters.{}.adapter_down.0.weight",
    "adapter/down_bias": "adapters.{}.adapter_down.0.bias",
    "adapter/up_kernel": "adapters.{}.adapter_up.weight",
    "adapter/up_bias": "adapters.{}.adapter_up.bias",
}


def _family(model_type: str) -> Family:
    require(
        model_type in FAMILIES,
        f"AdapterHub folders of {model_type!r} are not implemented{nearest(model_type, FAMILIES)}",
    )
    return FAMILIES[model_type]


@dataclass(frozen=True)
class Piece:
    """Where a layer's parameter lies.

    Attributes:
        tensor: its name, without the model's prefix.
        index: of these rows among those of the parameters that share the tensor.
        turned: kernels are stored (out, in).
    """

    tensor: str
    index: int
    turned: bool


def _piece(tuned: Tuned, family: Family, name: str, path: str) -> Piece:
    """Where the parameter at an unrolled path lies.

    Raises:
        UserError: AdapterHub has none like it.
    """
    places, (module, leaf) = tuned.names.base, path.rsplit("/", 1)
    if leaf in PROJECTION:
        part = places[module]
        part = Part(part) if isinstance(part, str) else part
        return Piece(f"{part.name}.{PROJECTION[leaf].format(name)}", part.index, True)
    module, kind, leaf = path.rsplit("/", 2)
    leaf = f"{kind}/{leaf}"
    require(leaf in BLOCK, f"AdapterHub has no parameter like {path!r}")
    place = module.removesuffix("_norm")
    block = places[f"{place}_norm"].rsplit(".", 1)[0]
    block += family.output if place.endswith("/ffn") else family.attention
    return Piece(f"{block}.{BLOCK[leaf].format(name)}", 0, leaf.endswith("kernel"))


def _pieces(tuned: Tuned, family: Family, name: str) -> dict[str, list[Piece]]:
    """Path of every parameter that the method adds → where its layers lie."""
    return {
        path: [_piece(tuned, family, name, unrolled) for unrolled in expand(path)]
        for path in tuned.shapes
        if path not in tuned.base.shapes
    }


def to_tensors(
    tuned: Tuned, params: Mapping[str, Any], model_type: str, name: str
) -> dict[str, np.ndarray]:
    """The tensors of an adapter by AdapterHub's names."""
    family, rows = _family(model_type), {}
    for path, pieces in _pieces(tuned, family, name).items():
        array = np.asarray(params[path], np.float32)
        layers = array[None] if expand(path) == [path] else array
        for piece, layer in zip(pieces, layers, strict=True):
            rows.setdefault(f"{family.prefix}.{piece.tensor}", {})[piece.index] = (
                layer.T if piece.turned else layer
            )
    return {
        tensor: np.ascontiguousarray(np.concatenate([parts[i] for i in sorted(parts)]))
        for tensor, parts in rows.items()
    }


def from_tensors(
    tuned: Tuned, tensors: Mapping[str, np.ndarray], model_type: str, name: str
) -> Flat:
    """The inverse of `to_tensors`; a plain model's names have no prefix.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    family = _family(model_type)
    bare = {tensor.removeprefix(f"{family.prefix}."): array for tensor, array in tensors.items()}
    found = _pieces(tuned, family, name)
    shared: dict[str, set[int]] = {}
    for piece in (piece for pieces in found.values() for piece in pieces):
        shared.setdefault(piece.tensor, set()).add(piece.index)
    for tensor in shared:
        require(tensor in bare, f"the adapter lacks tensor {tensor!r}{nearest(tensor, bare)}")
    for tensor in bare:
        require(tensor in shared, f"the adapter has an unexpected tensor {tensor!r}")

    def layer(piece: Piece, shape: tuple[int, ...]) -> np.ndarray:
        indices, array = sorted(shared[piece.tensor]), bare[piece.tensor]
        rows = len(array) // len(indices)
        start = rows * indices.index(piece.index)
        part = array[start : start + rows]
        part = part.T if piece.turned else part
        fits = part.shape == shape and rows * len(indices) == len(array)
        require(fits, f"tensor {piece.tensor!r} has shape {array.shape}, not that of {shape}")
        return np.ascontiguousarray(part, np.float32)

    params = {}
    for path, pieces in found.items():
        shape = tuned.shapes[path].shape
        single = expand(path) == [path]
        layers = [layer(piece, shape if single else shape[1:]) for piece in pieces]
        params[path] = layers[0] if single else np.stack(layers)
    return params


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
        heads = tuned.config.heads
        same = (
            tuned.model.head in heads
            and read["model_class"] == heads[tuned.model.head].architecture
        )
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
    family = _family(model_type)
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
