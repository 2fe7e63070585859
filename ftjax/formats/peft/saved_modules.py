"""What a PEFT folder holds besides its method's parameters: parameters of the base itself.

These are `modules_to_save`, tables of words that were resized or adapted, biases, and rows of
`trainable_token_indices`. They replace those of the base, and stay frozen.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from ftjax.errors import UserError, nearest, require
from ftjax.formats.hf import mapping
from ftjax.formats.peft.config import MERGE, value_at
from ftjax.formats.peft.pieces import INSIDE
from ftjax.names import shape_of
from ftjax.parallel.gather import fetched
from ftjax.paths import Flat, expand
from ftjax.quantization import Quantized
from ftjax.tuned import Tuned

ROWS = ".token_adapter.trainable_tokens_delta"
# Names that wrappers of a run, an adapter and a saved module put before what they hold.
WRAPPERS = r"\b(module|_orig_mod|_fsdp_wrapped_module|modules_to_save|base_layer)\."
COPIES = r"(lm_head|((en|de)coder\.|model\.)*embed_tokens|shared|.*wte)\.weight"


def plain_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by what PEFT would call them, without names of wrappers and of the adapter.

    Raises:
        UserError: two tensors that differ are then called alike.
    """
    plain: dict[str, str] = {}
    for key in sorted(tensors):
        if ".original_module." in key or key.endswith(".token_adapter.base_layer.weight"):
            continue  # the base's own
        name = re.sub(r"\.default(?=\.|$)", "", re.sub(WRAPPERS, "", key))
        name = re.sub(r"(?<=\.lora_magnitude_vector)\.weight$", "", name)
        # PEFT stores the biases of saved modules both as what they are and as biases.
        same = name not in plain or np.array_equal(tensors[plain[name]], tensors[key])
        require(same, f"{plain.get(name)!r} and {key!r} are the same tensor, and differ")
        plain[name] = key
    return {name: tensors[key] for name, key in plain.items()}


def saved(
    tuned: Tuned,
    params: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    inside: str,
    file: str,
) -> Flat:
    """Parameters of the base that a folder has besides its method's, by path.

    Args:
        tuned: the model under the folder's method.
        params: flat parameters.
        tensors: what the folder has, without the method's and the head's.
        config: adapter_config.json's mapping.
        inside: what comes before the base model's names.
        file: that has the tensors.

    Raises:
        UserError: a tensor is no parameter of the model, or of another shape, or the model cannot
            have it.
    """
    named = _named(tuned, inside)
    loaded: Flat = {}
    for path, names in named.items():
        if not any(name in tensors for name in names):
            continue
        require(
            not isinstance(params[path], Quantized),
            f"{file}: {names[0]!r} is of weights that method.bits stores quantized: {MERGE}",
        )
        loaded[path] = _parameter(tuned, path, params[path], names, tensors, file)
    used = {name for path in loaded for name in named[path]}
    for key in sorted(tensors.keys() - used):
        path = _path(tuned, named, key.removesuffix(ROWS) + ".weight")
        if key.endswith(ROWS) and path:
            value = np.array(fetched(loaded.get(path, params[path])), np.float32)
            table = value.T if path.endswith("/kernel") else value  # a view
            indices = config.get("trainable_token_indices")
            if isinstance(indices, Mapping):
                indices = value_at(indices, key.removeprefix(INSIDE).removesuffix(ROWS), None)
            rows = np.asarray(indices if indices is not None else (), np.int64)
            fits = tensors[key].shape == (len(rows), table.shape[1]) and (rows < len(table)).all()
            require(fits, f"{file}: {key!r} does not fit trainable_token_indices={indices!r}")
            table[rows] = tensors[key]
            loaded[path] = value
        elif not _copy_of_words(tuned, key):
            raise UserError(
                f"{file} has {key!r}, which method.targets does not adapt and the model does not "
                f"have{nearest(key, [name for names in named.values() for name in names])}"
            )
    _check_tied(tuned, params, loaded, tensors, config, inside, file)
    return loaded


def _named(tuned: Tuned, inside: str) -> dict[str, list[str]]:
    """Path of every parameter of the base → the tensors that hold it, a layer each."""
    return {
        path: [
            (INSIDE if tuned.names.in_head(path) else inside) + name
            for name, _ in tuned.names.stored(path)
        ]
        for path in tuned.base.shapes
    }


def _path(tuned: Tuned, named: Mapping[str, list[str]], key: str) -> str | None:
    """The parameter that a tensor is of, also of a copy of the table of words."""
    saved_path = next((path for path, names in named.items() if key in names), None)
    return saved_path or (f"{tuned.base.words}/embedding" if _copy_of_words(tuned, key) else None)


def _one_table(tuned: Tuned) -> bool:
    """Whether words are looked up on both sides, or looked up and read off, by the same table."""
    return tuned.ties_words or (tuned.base.two_sided and len(tuned.base.tables) == 1)


def _copy_of_words(tuned: Tuned, key: str) -> bool:
    """Whether a tensor is one of several that are one parameter of the model."""
    return _one_table(tuned) and bool(re.fullmatch(COPIES, key.removeprefix(INSIDE)))


def _parameter(
    tuned: Tuned,
    path: str,
    base: Any,
    names: list[str],
    tensors: Mapping[str, np.ndarray],
    file: str,
) -> np.ndarray:
    """A parameter, of which layers that the folder lacks are the base's."""
    stored, leaf = tuned.names.stored(path), path.rsplit("/", 1)[1]
    axes = (path != expand(path)[0]) + bool(stored[0][1].stack)
    value = np.array(fetched(base), np.float32)
    layers = value.reshape(len(stored), *value.shape[axes:])  # a view
    for number, (name, (_, part)) in enumerate(zip(names, stored, strict=True)):
        if name not in tensors:
            continue
        shape, needed = shape_of(tensors[name].shape, part, leaf), layers.shape[1:]
        if shape != needed and path.removesuffix("/embedding") in tuned.base.tables:
            refuse_resized(file, name, shape, needed)
        require(
            shape == needed,
            f"{file}: {name!r} has shape {shape}, but parameter {path!r} needs {needed}",
        )
        whole = tuple(slice(None) for _ in needed)
        layers[number] = mapping.Stored(needed, [tensors[name]], part, leaf).read(whole, np.float32)
    return value


def refuse_resized(file: str, key: str, shape: Sequence[int], needed: Sequence[int]) -> NoReturn:
    """Raises UserError for a table of more words, or fewer, than the model's."""
    raise UserError(
        f"{file}: {key!r} is a table of shape {tuple(shape)}, and the model's {tuple(needed)}: the "
        "adapter was trained on a resized vocabulary. Put its tokenizer's files into a copy of the "
        "base's folder and set model.resize_vocabulary=True, or, for rows without words, resize "
        f"the base with transformers (resize_token_embeddings({shape[0]})) and save it; give that "
        "folder as model.path"
    )


def _check_tied(
    tuned: Tuned,
    params: Mapping[str, Any],
    loaded: Flat,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    inside: str,
    file: str,
) -> None:
    """Raises UserError where PEFT looks words up in one table and reads them off another.

    A saved module is a copy of PEFT's, of which the others that it was tied to know nothing; other
    tensors are loaded into the base, where all that are tied are one.
    """
    path = f"{tuned.base.words}/embedding"
    own = _named(tuned, inside)[path]
    copies = [x for key, x in tensors.items() if key not in own and _copy_of_words(tuned, key)]
    if not _one_table(tuned) or (path not in loaded and not copies):
        return
    base = np.asarray(fetched(params[path]), np.float32)
    table = loaded.get(path, base)
    (words,) = {name for name, _ in tuned.names.stored(path)}
    module = words.removesuffix(".weight")
    apart = any(module.endswith(name) for name in config.get("modules_to_save") or ())
    if apart and not config.get("ensure_weight_tying") and not copies:
        copies = [base]
    if any(copy.shape != table.shape or np.any(copy != table) for copy in copies):
        raise UserError(
            f"{file} has words in tables of their own where they are looked up and where they are "
            "read off, and the model has one table for both (tie_word_embeddings): "
            f"{MERGE}, with tie_word_embeddings=false"
        )


def changed(tuned: Tuned, params: Mapping[str, Any], weights: Mapping[str, Any]) -> str | None:
    """A frozen parameter of the base that is not what its folder has, if there is one.

    Args:
        tuned: the model under its method.
        params: flat parameters.
        weights: of the base's folder.
    """
    different: list[str] = []

    def compare(path: str, stored: mapping.Stored) -> None:
        now = params.get(path)
        head = tuned.names.in_head(path) and not tuned.base.of_words
        if head or tuned.partition.is_trainable(path) or not hasattr(now, "astype"):
            return
        then = stored.read(tuple(slice(None) for _ in stored.shape), np.float32)
        if np.any(then.astype(now.dtype) != fetched(now)):
            different.append(path)

    new_head = not tuned.base.of_words  # a classifier may have other labels than the base's
    mapping.load(weights, tuned.base.shapes, tuned.names, compare, new_head)
    return different[0] if different else None
