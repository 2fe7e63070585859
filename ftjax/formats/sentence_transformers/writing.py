"""Modules of sentence-transformers: what comes after a plain encoder, written and read."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from ftjax.errors import UserError
from ftjax.formats.hf import mapping
from ftjax.formats.hf.tokenizer_files import copy_files
from ftjax.formats.jsons import read_json, write_json
from ftjax.formats.sentence_transformers import modules
from ftjax.formats.sentence_transformers.modules import ACTIVATIONS, MODULES, POOLING
from ftjax.names import LEAVES, Part, shape_of
from ftjax.tuned import Tuned

SETTINGS = "config_sentence_transformers.json"
READING = """
```python
from sentence_transformers import SentenceTransformer

{} = SentenceTransformer("FOLDER").encode(texts)
```
"""


class Module(NamedTuple):
    """A Dense module of a model.

    Attributes:
        place: its folder in that of the model.
        path: of our module.
        activation: torch's class.
        labelled: whether it is the classifier.
    """

    place: str
    path: str
    activation: str
    labelled: bool


def plain_encoder(tuned: Tuned) -> bool:
    """Whether `transformers` has the model's encoder alone: no such head."""
    return tuned.model.pooling == "mean" or tuned.model.head == "embedding"


def described(tuned: Tuned) -> str:
    """What comes after the encoder, in words."""
    places = ", ".join(f"`{module.place}`" for module in _dense(tuned))
    after = f", then the Dense modules in {places}" if places else ""
    if tuned.model.head == "embedding":
        return f"Embeddings of texts: {tuned.model.pooling} pooling{after}, brought to length 1."
    return (
        f"Mean pooling{after}, the last of which is the head: transformers has no classifier that "
        "averages tokens, and AutoModelForSequenceClassification would start a new one."
    )


def reading(tuned: Tuned) -> str:
    """How a folder that `write_modules` has completed is read, for its README."""
    embedding = tuned.model.head == "embedding"
    code = READING.format("vectors" if embedding else "outputs")
    return code if embedding else f"{code}\nOutputs are in the order of `id2label` in config.json."


def labels_of(names: tuple[str, ...]) -> dict[str, Any]:
    """What config.json says of a classifier's outputs."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def write_modules(
    output: Path, source: Path, tuned: Tuned, head: Mapping[str, Any], names: tuple[str, ...]
) -> None:
    """Writes all modules after an encoder, and how the library puts them together.

    Args:
        output: the encoder's folder.
        source: of the base model.
        tuned: the model.
        head: its head's parameters.
        names: of a classifier's outputs.
    """
    write_beside(output, tuned, head, names)
    kinds = [("", "Transformer"), (POOLING, "Pooling")]
    kinds += [(module.place, "Dense") for module in _dense(tuned)]
    if tuned.model.head == "embedding":
        place = f"{len(kinds)}_Normalize"
        (output / place).mkdir(exist_ok=True)
        write_json(output / place / "config.json", {})
        kinds.append((place, "Normalize"))
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    write_json(output / MODULES, listed)
    if not source.is_dir():
        return
    copy_files(source, output, ("sentence_bert_config.json",))
    if (source / SETTINGS).exists():  # texts are trained on as they are, without a prompt before
        write_json(output / SETTINGS, {**read_json(source / SETTINGS), "default_prompt_name": None})


def write_beside(
    output: Path, tuned: Tuned, head: Mapping[str, Any], names: tuple[str, ...]
) -> None:
    """Writes how tokens are pooled, and the Dense modules that come after; see `write_modules`."""
    write_pooling(output, tuned)
    for module in _dense(tuned):
        arrays = {leaf: head.get(f"{module.path}/{leaf}") for leaf in ("kernel", "bias")}
        width, count = arrays["kernel"].shape
        settings = {"in_features": width, "out_features": count}
        settings |= {"bias": arrays["bias"] is not None, "activation_function": module.activation}
        settings |= labels_of(names) if module.labelled else {}
        (output / module.place).mkdir(exist_ok=True)
        write_json(output / module.place / "config.json", settings)
        tensors = {
            f"linear.{LEAVES[leaf]}": np.ascontiguousarray(array.T, np.float32)
            for leaf, array in arrays.items()
            if array is not None
        }
        save_file(tensors, output / module.place / "model.safetensors", {"format": "pt"})


def _dense(tuned: Tuned) -> list[Module]:
    """A model's Dense modules in order."""
    torch = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    layers = tuned.model.dense
    modules = [
        Module(x.place, f"dense_{i}", torch[x.activation], False) for i, x in enumerate(layers)
    ]
    if tuned.model.head == "classification":
        number = 2 + max([int(x.place.partition("_")[0]) - 1 for x in layers], default=0)
        modules.append(Module(f"{number}_Dense", "classifier", torch[""], True))
    return modules


def write_pooling(output: Path, tuned: Tuned) -> None:
    """Which tokens' vectors the library reads. XLNet's texts end with the token for the whole."""
    mean, last = tuned.model.pooling == "mean", tuned.names.model == "XLNetModel"
    pooling = {
        "word_embedding_dimension": tuned.config.hidden_size,
        "pooling_mode_mean_tokens": mean,
        "pooling_mode_cls_token": not mean and not last,
        "pooling_mode_lasttoken": not mean and last,
        "pooling_mode_max_tokens": False,
    }
    (output / POOLING).mkdir(parents=True, exist_ok=True)
    write_json(output / POOLING / "config.json", pooling)


def read_beside(folder: Path, tuned: Tuned, paths: Iterable[str]) -> dict[str, mapping.Stored]:
    """Those of a head's parameters that a folder's Dense modules hold.

    Args:
        folder: of a model, or of an adapter.
        tuned: the model.
        paths: of the parameters that are asked for.

    Raises:
        UserError: one is of another shape.
    """
    if not plain_encoder(tuned):
        return {}
    places = {f"dense_{i}": layer.place for i, layer in enumerate(tuned.model.dense)}
    places["classifier"] = modules.classifier(folder)
    tensors, parameters = modules.tensors(folder), {}
    for path in paths:
        module, leaf = path.rsplit("/", 1)
        name, part = f"{places.get(module)}.linear.{LEAVES[leaf]}", Part("")
        if name not in tensors:
            continue
        shape, needed = shape_of(tensors[name].shape, part, leaf), tuned.shapes[path].shape
        if shape != needed:
            raise UserError(
                f"{folder / places[module]}: its {LEAVES[leaf]} (transposed) has shape {shape}, "
                f"but {path!r} needs {needed}; set model.new_head=True to start a new head"
            )
        parameters[path] = mapping.Stored(needed, [tensors[name]], part, leaf)
    return parameters
