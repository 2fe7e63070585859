"""A model's parameters, in their places on the mesh: a folder's, and what it lacks."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer, open_weights
from ftjax.formats.hf import mapping
from ftjax.formats.hf.vocabulary import widened
from ftjax.formats.sentence_transformers.writing import read_beside
from ftjax.parallel.mesh import param_shardings
from ftjax.partition import merge
from ftjax.paths import Flat
from ftjax.tuned import Tuned


def load(
    folder: Path,
    tuned: Tuned,
    mesh: Mesh,
    key: jax.Array,
    replicate: tuple[str, ...] = (),
    new_head: bool = False,
    resize: bool = False,
) -> tuple[Flat, list[str]]:
    """Parameters in place: the folder's tensors streamed, the rest initialized by jit.

    A head may lie in modules of sentence-transformers. With `new_head`, the folder's is left; with
    `resize`, it may have fewer words.

    Returns:
        Flat parameters, and the paths of the head's parameters that the folder lacks.
    """
    shardings = param_shardings(tuned.shapes, tuned.axes, mesh, replicate)

    def place(path: str, stored: mapping.Stored) -> jax.Array:
        sharding, parts, held = shardings[path], [], (None, None)
        indices = sharding.addressable_devices_indices_map(stored.shape)
        # Devices that hold the same part come in turn and are waited for, so that it is read once
        # and the host holds no other.
        for device, index in sorted(indices.items(), key=lambda item: str(item[1])):
            if index != held[0]:
                held = index, stored.read(index, tuned.dtype(path))
            parts.append(jax.block_until_ready(jax.device_put(held[1], device)))
        array = jax.make_array_from_single_device_arrays(stored.shape, sharding, parts)
        return tuned.method.stored(tuned.base, path, array)

    def widen(path: str, tensor: Any) -> Any:
        buffer = path.rsplit("/", 1)[0] in tuned.base.buffers
        zero = buffer or (path.endswith("/bias") and tuned.config.tied)
        return widened(tensor, path, tuned.axes[path], tuned.base.shapes[path].shape, zero)

    stored = open_weights(folder), tuned.base.shapes, tuned.names
    loaded, absent = mapping.load(*stored, place, new_head, widen if resize else None)
    needed = [path for path in absent if not (new_head and path.startswith("classifier/"))]
    beside = read_beside(folder, tuned, needed)
    loaded |= {path: place(path, tensor) for path, tensor in beside.items()}
    absent = [path for path in absent if path not in beside]
    _require_words(folder, tuned, absent, new_head)
    missing = [path for path in tuned.shapes if path not in loaded]
    params = merge(loaded, tuned.init(key, missing, shardings))
    return params | derived(tuned, params, key, shardings, folder), absent


def _require_words(folder: Path, tuned: Tuned, absent: list[str], new_head: bool) -> None:
    """Raises UserError where words are said to be read off a table of their own, which is absent.

    `transformers` reads those of a T5 off the table that they are looked up in, and draws others'.
    """
    head = tuned.config.heads.get(tuned.model.head)
    if new_head or head is None or not head.vocabulary or tuned.config.tied:
        return
    name = f"{head.vocabulary}.weight"
    if any(stored == name for path in absent for stored, _ in tuned.names.stored(path)):
        unscaled = ' and "scale_decoder_outputs": false' if "T5" in head.architecture else ""
        raise UserError(
            f"{folder} says tie_word_embeddings=false and has no {name!r}: set "
            f'"tie_word_embeddings": true{unscaled} in its config.json to read words off the table '
            "that they are looked up in, or model.new_head=True to start a new head"
        )


def derived(
    tuned: Tuned, params: Flat, key: jax.Array, shardings: Mapping[str, Any], folder: Path
) -> Flat:
    """Those parameters of the method whose first value depends on the base's."""
    base = replace(tuned.base, tokenize=partial(_tokenize, folder))

    def initialize(params: Flat, key: jax.Array) -> Flat:
        return tuned.method.initialize(base, params, key)

    placed = {path: shardings[path] for path in jax.eval_shape(initialize, params, key)}
    return jax.jit(initialize, out_shardings=placed)(params, key) if placed else {}


def _tokenize(folder: Path, text: str) -> list[int]:
    return load_tokenizer(folder)(text, add_special_tokens=False)["input_ids"]
