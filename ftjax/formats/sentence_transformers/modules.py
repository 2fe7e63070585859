"""Modules of sentence-transformers that a folder has after its encoder, as they are read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ftjax.errors import UserError, require
from ftjax.formats.hf.weights import Weights, weight_files
from ftjax.formats.jsons import read_json, read_value

MODULES, POOLING = "modules.json", "1_Pooling"
# torch's classes → what `ftjax.models.layers.ACTIVATIONS` calls them.
ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": "",
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
}
READ = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")


class DenseLayer(NamedTuple):
    """A Dense module between a pooled vector and what is made of it.

    Attributes:
        place: its folder in that of the model.
        features: of its output.
        activation: after it, of `ACTIVATIONS`; empty for none.
        bias: whether it has one.
    """

    place: str
    features: int
    activation: str
    bias: bool


def pooled(folder: Path | None, pooling: str = "auto") -> dict[str, Any]:
    """Arguments of an encoder's `Model` for what it does with its tokens.

    Args:
        folder: of the model; None where there is none yet.
        pooling: "auto" for what the folder says, its Dense modules among it; others stand alone.

    Raises:
        UserError: the folder has a module that is not implemented.
    """
    if pooling != "auto":
        return {"pooling": pooling}
    if folder is None:
        return {"pooling": "cls"}
    dense = dense_layers(folder)
    return {"pooling": pooling_of(folder), **({"dense": dense} if dense else {})}


def pooling_of(folder: Path) -> str:
    """ "mean" or "cls", by sentence-transformers' 1_Pooling/config.json; "cls" where absent."""
    path = folder / POOLING / "config.json"
    if not path.exists():
        return "cls"
    config = read_json(path)
    mode = config.get("pooling_mode")
    if mode in ("mean", "cls"):
        return mode
    if config.get("pooling_mode_mean_tokens"):
        return "mean"
    last = mode == "lasttoken" or config.get("pooling_mode_lasttoken")
    xlnet = last and read_json(folder / "config.json").get("model_type") == "xlnet"
    if config.get("pooling_mode_cls_token") or xlnet:  # whose texts end so
        return "cls"
    raise UserError(f"{path}: only mean and cls pooling are implemented; set task.pooling")


def dense_layers(folder: Path) -> tuple[DenseLayer, ...]:
    """A folder's Dense modules in order, but for a classifier of ours.

    Raises:
        UserError: one is not implemented.
    """
    return tuple(_layer(folder, place) for place in _dense(folder) if not labels_of(folder, place))


def labels_of(folder: Path, place: str) -> tuple[str, ...]:
    """What the outputs of a Dense module are called, where it is a classifier; else empty."""
    file = folder / place / "config.json"
    names = read_json(file).get("id2label") or {}
    require(isinstance(names, dict), f"{file}: id2label={names!r} is no object")
    return tuple(str(names[str(i)]) for i in range(len(names)) if str(i) in names)


def classifier(folder: Path) -> str | None:
    """The place of a folder's Dense module that is a classifier, as we write it."""
    return next((place for place in reversed(_dense(folder)) if labels_of(folder, place)), None)


def tensors(folder: Path) -> dict[str, Any]:
    """The tensors of a folder's Dense modules, by their place and name there."""
    return {
        f"{place}.{name}": tensor
        for place in _dense(folder)
        for name, tensor in Weights(folder / place).items()
    }


def files(folder: Path) -> list[Path]:
    """All that `tensors` and `pooled` read."""
    places = _dense(folder)
    paths = [file for place in places for file in weight_files(folder / place)]
    paths += [folder / place / "config.json" for place in places]
    return paths


def _dense(folder: Path) -> list[str]:
    """Places of a folder's Dense modules; an adapter's folder has no list of modules."""
    file = folder / MODULES
    if not file.exists():
        return sorted(path.parent.name for path in folder.glob("[0-9]_Dense/config.json"))
    modules = read_value(file)
    listed = isinstance(modules, list) and all(isinstance(module, Mapping) for module in modules)
    if not listed:
        raise UserError(f"{file} must hold a list of modules")
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]
    places = [str(module.get("path", "")) for module in modules]
    for kind, place in zip(kinds, places, strict=True):
        require(
            kind in READ,
            f"{file}: a module {kind} is not implemented ({', '.join(READ)} are); without "
            f"{MODULES} the folder is read as the plain encoder",
        )
        inside = kind != "Dense" or re.fullmatch(r"\d+_\w+", place)
        require(inside, f"{file} names {place!r}, which is no numbered folder beside it")
    dense = [i for i, kind in enumerate(kinds) if kind == "Dense"]
    before = dense and "Normalize" in kinds[: dense[-1]]
    require(not before, f"{file}: a Dense module after Normalize is not implemented")
    return [places[i] for i in dense]


def _layer(folder: Path, place: str) -> DenseLayer:
    file = folder / place / "config.json"
    config = read_json(file)
    name, features = config.get("activation_function"), config.get("out_features")
    if not isinstance(name, str) or name not in ACTIVATIONS:
        known = ", ".join(activation.rpartition(".")[2] for activation in ACTIVATIONS)
        raise UserError(f"{file}: activation_function={name!r} is not implemented ({known} are)")
    if type(features) is not int or features < 1:
        raise UserError(f"{file}: out_features={features!r} must be a positive integer")
    whole = {"module_input_name": (None, "sentence_embedding"), "use_residual": (None, False)}
    whole["module_output_name"] = whole["module_input_name"]
    for key, read in whole.items():
        require(config.get(key) in read, f"{file}: {key}={config.get(key)!r} is not implemented")
    return DenseLayer(place, features, ACTIVATIONS[name], bool(config.get("bias", True)))
