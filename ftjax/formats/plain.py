"""The plain model that a tuned one amounts to, a tensor at a time."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftjax.formats import hf
from ftjax.parallel.gather import fetched
from ftjax.paths import Flat, expand
from ftjax.tuned import Tuned


class Plain:
    """Parameters of a tuned model merged with its method's, in float32.

    What is asked for is fetched from the devices that hold it, a module of a layer at a time, so
    that neither the whole model nor a stack of scanned layers is ever on the host.

    Args:
        tuned: the model under its method.
        params: its flat parameters.
    """

    def __init__(self, tuned: Tuned, params: Flat) -> None:
        self._tuned, self._params = tuned, params
        # What modules share: leaves that are in none.
        self._shared = {path: _float32(leaf) for path, leaf in params.items() if "/" not in path}
        self._last: tuple[tuple[str, int], Flat] = (("", 0), {})

    def tensors(self, paths: Iterable[str], prefix: bool) -> dict[str, hf.Written]:
        """Hugging Face's tensors of parameters, see `hf.written`; raises as `Tuned.merged`."""
        shapes = {path: self._tuned.base.shapes[path] for path in paths}
        return hf.written(shapes, self._tuned.names, prefix, self._read)

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
            own = {p: _float32(leaf) for p, leaf in own.items()}
            # Accelerators multiply in less than float32 unless told.
            with jax.default_matmul_precision("highest"):
                self._last = (module, layer), self._tuned.merged({**self._shared, **own})
        array = np.asarray(self._last[1][path])
        return array[0] if scanned else array


def _float32(leaf: Any) -> Any:
    """A leaf on this host, with its numbers in float32 where they are of a smaller type."""

    def wide(array: Any) -> np.ndarray:
        held = fetched(array)
        return held.astype(np.float32) if held.dtype in (jnp.bfloat16, jnp.float16) else held

    return jax.tree.map(wide, leaf)
