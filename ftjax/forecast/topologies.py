"""Devices to compile for that are not there, by the name of their topology."""

import jax

from ftjax.errors import UserError, nearest
from ftjax.forecast.chips import CHIPS, Chip, topology_devices
from ftjax.forecast.gpus import GPUS, gpu_devices


def devices_of(name: str, beside: int = 1) -> tuple[Chip, list[jax.Device]]:
    """The chip of a topology such as "v5e:8x8" or "h100:8", and its devices.

    Args:
        name: of the topology.
        beside: how many pods of TPUs, or hosts of GPUs.

    Raises:
        UserError: the compiler is not installed, or knows no such topology.
    """
    kind = name.partition(":")[0]
    known = (*CHIPS, *GPUS)
    if kind not in known:
        raise UserError(f"--topology {name}: {kind!r} is not a chip{nearest(kind, known)}")
    return (gpu_devices if kind in GPUS else topology_devices)(name, beside)
