"""Collectives over one axis of a mesh, along one dimension of the chips' torus after another.

Over an axis that spans several dimensions of the torus, TPUs' compiler has no reduce-scatter: it
sends whole sums round (an all-reduce). Nor has it an all-gather there of less than `SMALL` bytes.
One dimension after another it has both.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

Array = jax.Array
SMALL = 2**25
_RINGS: ContextVar[Mapping[str, tuple[int, ...]] | None] = ContextVar("rings", default=None)


@contextmanager
def rings(mesh: Mesh) -> Iterator[None]:
    """Where collectives follow the torus that `mesh` lies on."""
    token = _RINGS.set({axis: factors(mesh, axis) for axis in mesh.axis_names})
    try:
        yield
    finally:
        _RINGS.reset(token)


def factors(mesh: Mesh, axis: str) -> tuple[int, ...]:
    """Sizes of the torus' dimensions that an axis runs through, the slowest first.

    All in one where devices have no coordinates, or are not in the order of any such sizes; and on
    GPUs, whose library knows hosts itself: in parts, whole sums would go over the network.
    """
    if mesh.devices.flat[0].platform == "gpu":
        return (mesh.shape[axis],)
    number = mesh.axis_names.index(axis)
    devices = np.moveaxis(mesh.devices, number, 0).reshape(mesh.shape[axis], -1)[:, 0]
    where = [(getattr(d, "slice_index", 0), *getattr(d, "coords", (d.id,))) for d in devices]
    digits = np.array(where).T
    digits = [digit for digit in digits if len(set(digit)) > 1]
    digits.sort(key=lambda digit: np.count_nonzero(np.diff(digit)))
    sizes = tuple(len(set(digit)) for digit in digits)
    ranks = np.array([np.unique(digit, return_inverse=True)[1] for digit in digits])
    if np.prod(sizes) == len(devices) and len(sizes) > 1:
        expected = np.indices(sizes).reshape(len(sizes), -1)
        if np.array_equal(ranks, expected):
            return sizes
    return (len(devices),)


def _levels(axis: str) -> list[list[list[int]] | None]:
    """Groups of devices that send to each other, a dimension after another; None for all."""
    sizes = (_RINGS.get() or {}).get(axis, ())
    if len(sizes) < 2:
        return [None]
    numbers = np.arange(np.prod(sizes)).reshape(sizes)
    return [
        np.moveaxis(numbers, digit, -1).reshape(-1, size).tolist()
        for digit, size in enumerate(sizes)
    ]


def scatter_sum(x: Array, axis: str, dimension: int) -> Array:
    """This device's part, along a dimension, of the sum over an axis; in `jax.shard_map`."""
    for groups in _levels(axis):
        x = jax.lax.psum_scatter(
            x, axis, scatter_dimension=dimension, tiled=True, axis_index_groups=groups
        )
    return x


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def gather(x: Array, axis: str, dimension: int) -> Array:
    """The parts of all devices along an axis, end to end in a dimension; in `jax.shard_map`."""
    small = x.nbytes * jax.lax.axis_size(axis) < SMALL
    for groups in reversed(_levels(axis)) if small else (None,):
        x = jax.lax.all_gather(x, axis, axis=dimension, tiled=True, axis_index_groups=groups)
    return x


def _gather(x: Array, axis: str, dimension: int) -> tuple[Array, None]:
    return gather(x, axis, dimension), None


def _scatter(axis: str, dimension: int, _: None, grad: Array) -> tuple[Array]:
    return (scatter_sum(grad, axis, dimension),)


gather.defvjp(_gather, _scatter)
