"""The plain model that a tuned one amounts to, a tensor at a time."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.formats.hf import mapping
from ftjax.names import shape_of
from ftjax.parallel.gather import fetched
from ftjax.paths import Flat, expand
from ftjax.tuned import Tuned

SMALL = (jnp.bfloat16, jnp.float16)


class Plain:
    """Parameters of a tuned model merged with its method's, in float32.

    What is asked for is fetched from the devices that hold it, a module of a layer at a time, so
    that neither the whole model nor a stack of scanned layers is ever on the host. Parameters of
    the base that the model only holds rounded, since they are frozen, are read from it again.

    Args:
        tuned: the model under its method.
        params: its flat parameters.
        base: tensors of the folder that they come from, see `open_weights`.
    """

    def __init__(self, tuned: Tuned, params: Flat, base: Mapping[str, Any]) -> None:
        self._tuned, self._params, self._base = tuned, params, base
        self._prefix = tuned.names.prefix_in(base)
        # What modules share: leaves that are in none.
        self._shared = {path: _float32(leaf) for path, leaf in params.items() if "/" not in path}
        self._last: tuple[tuple[str, int], Flat] = (("", 0), {})

    def tensors(self, paths: Iterable[str], prefix: bool) -> dict[str, mapping.Written]:
        """Hugging Face's tensors of parameters, see `mapping.written`; raises as `Tuned.merged`."""
        shapes = {path: self._tuned.base.shapes[path] for path in paths}
        return mapping.written(shapes, self._tuned.names, prefix, self._read)

    def leaf(self, path: str) -> np.ndarray:
        """A parameter that no scanned layer has."""
        return self._merged(path, 0)

    def _read(self, path: str, number: int) -> np.ndarray:
        """A parameter's part, by its number among `Names.stored`."""
        stored = self._tuned.names.stored(path)
        layer, inside = divmod(number, len(stored) // len(expand(path)))
        array = self._merged(path, layer)
        return array[inside] if stored[0][1].stack else array

    def _merged(self, path: str, layer: int) -> np.ndarray:
        """A parameter, of one layer where there is one for each."""
        module, scanned = path.rsplit("/", 1)[0], expand(path) != [path]
        if self._last[0] != (module, layer):
            own = {p: x for p, x in self._params.items() if p.rpartition("/")[0] == module}
            if scanned:  # the axis of layers stays, so that paths mean what they do
                one = slice(layer, layer + 1)
                own = {p: jax.tree.map(lambda x: x[one], leaf) for p, leaf in own.items()}
            own = {p: self._unrounded(p, leaf, layer) for p, leaf in own.items()}
            # Accelerators multiply in less than float32 unless told.
            with jax.default_matmul_precision("highest"):
                self._last = (module, layer), self._tuned.merged({**self._shared, **own})
        array = np.asarray(self._last[1][path])
        return array[0] if scanned else array

    def _unrounded(self, path: str, leaf: Any, layer: int) -> Any:
        """A leaf in float32: the base's own numbers where these are what they are rounded to."""
        if path not in self._tuned.base.shapes or getattr(leaf, "dtype", None) not in SMALL:
            return _float32(leaf)
        held, names, scanned = fetched(leaf), self._tuned.names, expand(path) != [path]
        stored = names.stored_in(self._base, path, self._prefix)
        count = len(stored) // len(expand(path))
        stored = stored[layer * count : (layer + 1) * count] if scanned else stored
        if all(name in self._base for name, _ in stored):
            tensors, part = [self._base[name] for name, _ in stored], stored[0][1]
            kind = path.rsplit("/", 1)[1]
            inner = shape_of(tensors[0].shape, part, kind)
            if held.shape[held.ndim - len(inner) :] == inner and tensors[0].dtype != held.dtype:
                own = mapping.Stored(held.shape, tensors, part, kind)
                own = own.read(tuple(slice(None) for _ in held.shape), np.float32)
                held = own if np.array_equal(own.astype(held.dtype), held) else held
        return held.astype(np.float32)


def _float32(leaf: Any) -> Any:
    """A leaf on this host, with its numbers in float32 where they are of a smaller type."""

    def wide(array: Any) -> np.ndarray:
        held = fetched(array)
        return held.astype(np.float32) if held.dtype in SMALL else held

    return jax.tree.map(wide, leaf)
