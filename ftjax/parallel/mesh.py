"""The mesh, and where each parameter lies on it."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ftjax.errors import UserError
from ftjax.parallel.collectives import rings
from ftjax.paths import Flat

AXES = ("data", "fsdp", "expert", "sequence", "tensor")  # from where least is sent to where most
RULES: dict[str, str | tuple[str, ...] | None] = {  # logical axis → mesh axis
    "batch": ("data", "fsdp", "expert"),
    "length": "sequence",
    "hidden": None,  # features of activations; "embed" is the same size in parameters
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv": "tensor",
    "vocab": "tensor",
    "layers": None,
    "experts": "expert",
    "rank": None,
}


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    *,
    expert: int = 1,
    sequence: int = 1,
    near: Sequence[str] = (),
) -> Mesh:
    """A mesh over all devices; one size may be -1, for what the others leave.

    Devices of several slices lie along the data axis, which sends least; those of one slice in
    the order in which their links are used best, neighbours along the last of `AXES`, or of `near`.

    Raises:
        UserError: the sizes do not multiply to the number of devices, the data axis is no multiple
            of the slices, or an axis is in `near` twice.
    """
    if len(set(near)) < len(near):
        raise UserError(f"mesh.near={tuple(near)} names an axis twice")
    devices = jax.devices() if devices is None else devices
    sizes, count = [data, fsdp, expert, sequence, tensor], len(devices)
    shape = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(f"{shape}: sizes must be positive, and at most one of them -1")
    known = math.prod(size for size in sizes if size > 0)
    sizes = [count // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != count:
        raise UserError(f"{shape} needs {known} devices or a divisor; there are {count}")
    slices = _slices(devices)
    if sizes[0] % slices:
        raise UserError(f"mesh.data={sizes[0]} must be a multiple of the {slices} slices")
    # An axis may take a part of a dimension of the torus, where none has its size.
    split = {"devices": devices, "allow_split_physical_axes": True}
    far = [axis for axis in AXES if axis not in near]
    order = [AXES.index(axis) for axis in (*far, *near)]
    if slices > 1:
        within, between = (sizes[0] // slices, *sizes[1:]), (slices, *(1,) * (len(AXES) - 1))
        pairs = ([shape[i] for i in order] for shape in (within, between))
        grid = mesh_utils.create_hybrid_device_mesh(*pairs, **split)
    else:
        grid = mesh_utils.create_device_mesh([sizes[i] for i in order], **split)
    return Mesh(grid.transpose(np.argsort(order)), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def configured_mesh(config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of the section `mesh` of a configuration."""
    sizes = {axis: config[axis] for axis in AXES}
    return make_mesh(**sizes, devices=devices, near=config["near"])


def mesh_like(
    trained_sizes: Mapping[str, int], overrides: Mapping[str, int], devices: Sequence[jax.Device]
) -> dict[str, int]:
    """Sizes of a mesh of `devices` for what was trained on a mesh of others.

    Each axis has what it had, or the largest share of it that there are devices for, so that what
    divided still divides; that of -1, or else the data axis, has what is left.

    Args:
        trained_sizes: axis → size, as `make_mesh` takes them.
        overrides: sizes that are asked for.
        devices: that are there.
    """
    slices = _slices(devices)
    unsized = [axis for axis in AXES if overrides.get(axis, trained_sizes[axis]) == -1]
    rest = next((axis for axis in unsized if axis in overrides), [*unsized, "data"][0])
    sizes, left = {**overrides}, len(devices) // slices
    left //= math.prod(size for size in overrides.values() if size > 0)
    for axis in reversed(AXES):  # the last ones are where most is sent
        if axis not in sizes and axis != rest:
            copies = axis == "data" and rest in overrides  # who asks for all on one wants no copies
            sizes[axis] = 1 if copies else math.gcd(trained_sizes[axis], left)
            left //= sizes[axis]
    if rest not in overrides:
        sizes[rest] = max(left, 1)
    if slices > 1 and "data" not in overrides:
        sizes["data"] *= slices
    return sizes


def _slices(devices: Sequence[jax.Device]) -> int:
    """Of TPUs; what GPUs call so are nodes, which lie one after another in any mesh."""
    indices = {getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}
    return max(len(indices), 1)


@contextmanager
def logical_axes(mesh: Mesh) -> Iterator[None]:
    """Where the models' logical constraints take effect on `mesh`."""
    with jax.set_mesh(mesh), rings(mesh), nn.logical_axis_rules(tuple(RULES.items())):
        yield


def place(
    axes: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int]
) -> tuple[Any, ...]:
    """The mesh axis, or axes, of each dimension of a parameter.

    Factors of low rank with no dimension on fsdp are spread over it along their other side, where
    that divides.

    Args:
        axes: logical axes.
        shape: of the parameter.
        sizes: of the mesh's axes.
    """
    placed = tuple(RULES[axis] if axis else None for axis in axes)
    if "rank" not in axes or "fsdp" in placed:
        return placed
    ways = sizes["tensor"] * sizes["fsdp"]
    spread = ("tensor", "fsdp")
    return tuple(
        spread if axis == "tensor" and size % ways == 0 else axis
        for axis, size in zip(placed, shape, strict=True)
    )


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
        placed = place(axes[path], shape, mesh.shape)
        for size, axis, name in zip(shape, placed, axes[path], strict=True):
            if isinstance(axis, str) and size % mesh.shape[axis]:
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
    return NamedSharding(sharding.mesh, fitting(sharding.mesh.shape, spec, shape))


def ways_of(sizes: Mapping[str, int], axes: str | Sequence[str] | None) -> int:
    """Over how many devices a dimension on a mesh axis, or on several, is spread."""
    return math.prod(sizes[axis] for axis in ([axes] if isinstance(axes, str) else axes or ()))


def fitting(sizes: Mapping[str, int], spec: Sequence[Any], shape: Sequence[int]) -> PartitionSpec:
    """A sharding's axes where they divide an array's dimensions; elsewhere none."""
    pairs = zip(spec, shape, strict=True)
    return PartitionSpec(*(axes if n % ways_of(sizes, axes) == 0 else None for axes, n in pairs))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over the axes that a batch is spread over."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_ways(mesh: Mesh) -> int:
    """Over how many parts of the mesh the rows of a batch are spread."""
    return ways_of(mesh.shape, RULES["batch"])


def rows_of(mesh: Mesh, rows: int, process: int) -> np.ndarray:
    """The rows of a global batch that a process's devices hold, in order.

    They need not lie side by side: devices are in the order in which their links are used best.
    """
    pieces = batch_sharding(mesh).devices_indices_map((rows,)).items()
    held = [np.arange(rows)[index] for device, index in pieces if device.process_index == process]
    return np.unique(np.concatenate(held))


def local_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """The rows of a global batch that this host's devices hold, in order."""
    return rows_of(mesh, rows, jax.process_index())


def shard_of(array: np.ndarray, held: np.ndarray, rows: slice) -> np.ndarray:
    """Some rows of a global batch, side by side there.

    Args:
        array: (held, ...), the rows that a process holds.
        held: their numbers, in order; they include those that are asked for.
        rows: those that are asked for.
    """
    start, stop, _ = rows.indices(int(held[-1]) + 1)
    first = int(np.searchsorted(held, start))
    return array[first : first + stop - start]


def place_rows(mesh: Mesh, local: Mapping[str, np.ndarray], rows: int) -> dict[str, jax.Array]:
    """A global batch from the rows that `local_rows` names."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(local), sharding)
    held = local_rows(mesh, rows)

    def place(array: np.ndarray) -> jax.Array:
        def shard(index: tuple[slice, ...]) -> np.ndarray:
            return shard_of(array, held, index[0])

        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, shard)

    return {name: place(array) for name, array in local.items()}


def placed_like(array: Any, old: Any) -> Any:
    """An array in the place of another: of its dtype, and where it lies."""
    array = array.astype(old.dtype)
    return jax.device_put(array, old.sharding) if isinstance(old, jax.Array) else array
