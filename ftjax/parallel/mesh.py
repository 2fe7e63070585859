"""The mesh, and where each parameter lies on it."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ftjax.errors import UserError
from ftjax.paths import Flat

AXES = ("data", "fsdp", "tensor")
RULES: dict[str, str | tuple[str, ...] | None] = {  # logical axis → mesh axis
    "batch": ("data", "fsdp"),
    "length": None,
    "hidden": None,  # features of activations; "embed" is the same size in parameters
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv": "tensor",
    "vocab": "tensor",
    "layers": None,
    "experts": None,
    "rank": None,
}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh over all devices; one size may be -1, for what the others leave.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = [data, fsdp, tensor], len(devices)
    wanted = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(f"{wanted}: sizes must be positive, and at most one of them -1")
    known = math.prod(size for size in sizes if size > 0)
    sizes = [count // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != count:
        raise UserError(f"{wanted} needs {known} devices or a divisor; there are {count}")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


@contextmanager
def logical_axes(mesh: Mesh) -> Iterator[None]:
    """Where the models' logical constraints take effect on `mesh`."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
        yield


def param_shardings(
    shapes: Flat,
    axes: Mapping[str, Sequence[str | None]],
    mesh: Mesh,
    replicate: Sequence[str] = (),
) -> dict[str, NamedSharding]:
    """The sharding of every parameter, by its logical axes.

    Args:
        shapes: path → anything with a shape.
        axes: path → a logical axis a dimension.
        mesh: with axes `AXES`.
        replicate: patterns of parameters to keep whole on every device.

    Raises:
        UserError: a dimension that its mesh axis does not divide.
    """

    def spec(path: str, shape: tuple[int, ...]) -> PartitionSpec:
        if any(re.fullmatch(pattern, path) for pattern in replicate):
            return PartitionSpec()
        placed = [RULES[axis] if axis else None for axis in axes[path]]
        for size, axis, name in zip(shape, placed, axes[path], strict=True):
            if axis and size % mesh.shape[axis]:
                raise UserError(
                    f"parameter {path!r}: its axis {name!r} of size {size} does not divide over "
                    f"mesh.{axis}={mesh.shape[axis]}; choose another mesh, or keep it whole with "
                    f"mesh.replicate=({path!r},)"
                )
        return PartitionSpec(*placed)

    return {path: NamedSharding(mesh, spec(path, leaf.shape)) for path, leaf in shapes.items()}


def fitted(sharding: NamedSharding, ndim: int, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of an array that stands for one of `ndim` dimensions, placed by `sharding`.

    Dimensions that do not divide are whole on every device, and so are arrays of another rank.
    """
    spec = (*sharding.spec, *(None,) * (ndim - len(sharding.spec)))
    if len(shape) != ndim:
        return NamedSharding(sharding.mesh, PartitionSpec())
    ways = [sharding.mesh.shape[axis] if axis else 1 for axis in spec]
    kept = [axis if n % k == 0 else None for axis, n, k in zip(spec, shape, ways, strict=True)]
    return NamedSharding(sharding.mesh, PartitionSpec(*kept))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_ways(mesh: Mesh) -> int:
    """Over how many parts of the mesh the rows of a batch are spread."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """The rows of a global batch that this host's devices hold, in order."""
    held = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for index in held]))


def place_rows(mesh: Mesh, local: Mapping[str, np.ndarray], rows: int) -> dict[str, jax.Array]:
    """A global batch from the rows that `local_rows` names, which must be contiguous."""
    if jax.process_count() == 1:
        return jax.device_put(dict(local), batch_sharding(mesh))
    first = int(local_rows(mesh, rows)[0])
    sharding = batch_sharding(mesh)

    def place(array: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            return array[(slice(start - first, stop - first), *index[1:])]

        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, shard)

    return {name: place(array) for name, array in local.items()}
