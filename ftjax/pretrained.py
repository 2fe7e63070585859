"""A model's parameters, in their places on the mesh: a folder's, and what it lacks."""

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from ftjax.formats import hf
from ftjax.formats.folder import open_weights
from ftjax.formats.vocabulary import widened
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

    With `new_head`, the folder's head is left; with `resize`, it may have fewer words.

    Returns:
        Flat parameters, and the paths of the head's parameters that the folder lacks.
    """
    shardings = param_shardings(tuned.shapes, tuned.axes, mesh, replicate)

    def place(path: str, stored: hf.Stored) -> jax.Array:
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
    loaded, absent = hf.load(*stored, place, new_head, widen if resize else None)
    missing = [path for path in tuned.shapes if path not in loaded]
    params = merge(loaded, tuned.init(key, missing, shardings))
    return params | tuned.started(params, key, shardings, folder), absent


def placed(array: Any, old: Any) -> Any:
    """An array in the place of another: of its dtype, and where it lies."""
    array = array.astype(old.dtype)
    return jax.device_put(array, old.sharding) if isinstance(old, jax.Array) else array
