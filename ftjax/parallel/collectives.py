"""Collectives over one axis of a mesh, along one dimension of the chips' torus after another.

Over an axis that spans several dimensions of the torus, TPUs' compiler has no reduce-scatter: it
sends whole sums round (an all-reduce). Nor has it an all-gather there of less than `SMALL` bytes.
One dimension after another it has both. The sparse cores of a chip have a reduce-scatter along
several dimensions, and send while the others compute.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh

from ftjax.parallel.platform import SPARSE_CORES

Array = jax.Array
SMALL = 2**25
WITH_SPARSE_CORES = ("TPU v5", "TPU v5p", "TPU v6 lite", "TPU7x")  # as devices call themselves
KINDS = ("all_gather", "all_reduce", "reduce_scatter")
OFFLOADED = tuple(  # options of the compiler by which sparse cores have all of these
    f"xla_tpu_enable_{option}"
    for kind in KINDS
    for option in (
        f"async_collective_fusion_fuse_{kind}=false",
        f"sparse_core_collective_offload_{kind}=true",
        f"{kind}_offload_tracing=true",
    )
) + tuple(
    f"xla_tpu_enable_sparse_core_collective_offload_{kind}=true"
    for kind in ("2d_all_gather", "3d_all_gather", "nd_reduce_scatter")
)
_RINGS: ContextVar[Mapping[str, tuple[int, ...]] | None] = ContextVar("rings", default=None)


def has_sparse_cores(devices: Iterable[jax.Device]) -> bool:
    """Whether chips have cores that collectives can run on."""
    return any(device.device_kind in WITH_SPARSE_CORES for device in devices)


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


def scatter_sum(x: Array, axis: str, dimension: int, sparse: bool | None = None) -> Array:
    """This device's part, along a dimension, of the sum over an axis; in `jax.shard_map`.

    Args:
        sparse: whether sparse cores do it; None: as `SPARSE_CORES` says.
    """
    sparse = SPARSE_CORES.value if sparse is None else sparse
    for groups in (None,) if sparse and x.nbytes >= SMALL else _levels(axis):
        x = jax.lax.psum_scatter(
            x, axis, scatter_dimension=dimension, tiled=True, axis_index_groups=groups
        )
    return x


def gather(x: Array, axis: str, dimension: int) -> Array:
    """The parts of all devices along an axis, end to end in a dimension; in `jax.shard_map`."""
    return _gather(x, axis, dimension, SPARSE_CORES.value)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(x: Array, axis: str, dimension: int, sparse: bool) -> Array:
    small = x.nbytes * jax.lax.axis_size(axis) < SMALL
    for groups in reversed(_levels(axis)) if small else (None,):
        x = jax.lax.all_gather(x, axis, axis=dimension, tiled=True, axis_index_groups=groups)
    return x


def _gathered(x: Array, axis: str, dimension: int, sparse: bool) -> tuple[Array, None]:
    return _gather(x, axis, dimension, sparse), None


def _scatter(axis: str, dimension: int, sparse: bool, _: None, grad: Array) -> tuple[Array]:
    return (scatter_sum(grad, axis, dimension, sparse),)


_gather.defvjp(_gathered, _scatter)
