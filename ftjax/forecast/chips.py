"""Chips, their published figures, and meshes of chips that are not there."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax

from ftjax.errors import UserError

AHEAD = {  # what libtpu asks of a machine with TPUs is told it, lest it wait for them
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Chip:
    """One chip, as its maker publishes it.

    Attributes:
        memory: bytes of high-bandwidth memory.
        bandwidth: of that memory, bytes a second.
        flops: of bfloat16, a second.
        links: bytes a second to all neighbours together, one way.
        clock: cycles a second, by which the compiler's own estimates are turned to time: the
            peak over what the multipliers do in a cycle.
        link: bytes a second of one link to a neighbour, one way, as measured in "How to Scale Your
            Model" (Austin et al. 2025, part 2).
        array: rows and columns of a matrix unit.
        cores: that a program is spread over without saying so.
        host: bytes a second to the machine's memory and back.
        network: bytes a second of its share of what joins slices, or hosts of GPUs.
        platform: "tpu" or "gpu".
    """

    memory: float
    bandwidth: float
    flops: float
    links: float
    clock: float
    link: float = 0.0
    array: int = 128
    cores: int = 1
    host: float = 16e9
    network: float = 25e9 / 8
    platform: str = "tpu"


GIB = 2**30
# As on https://cloud.google.com/tpu/docs; links are half of the published interconnect, which
# counts both ways.
CHIPS = {
    "v4": Chip(32 * GIB, 1.228e12, 275e12, 150e9, 1.05e9, 4.5e10, cores=2),
    "v5e": Chip(16 * GIB, 0.819e12, 197e12, 100e9, 1.5e9, 4.5e10),
    "v5p": Chip(95 * GIB, 2.765e12, 459e12, 300e9, 1.75e9, 9e10, cores=2),
    "v6e": Chip(32 * GIB, 1.64e12, 918e12, 224e9, 1.75e9, 9e10, array=256, host=32e9),
    "tpu7x": Chip(
        96 * GIB, 3.69e12, 1153.5e12, 300e9, 2.2e9, 9e10, array=256, host=32e9
    ),  # half: a chip is two devices
}
RING = {2: 16, 3: 4}  # dimensions of a slice → chips along a side that closes to a ring
SIDE = 16  # chips along a side of a slice of two dimensions


TPUS = {  # how a device calls itself → its chip
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
}
KINDS = {  # how a device calls itself → FLOPs a second in bfloat16, without sparsity
    **{kind: CHIPS[chip].flops for kind, chip in TPUS.items()},
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak_flops(devices: Sequence[jax.Device]) -> float | None:
    """FLOPs a second of all devices together; None where their kind is not known."""
    kind = devices[0].device_kind
    flops = KINDS.get(kind) or next((KINDS[name] for name in KINDS if name in kind), None)
    return flops and flops * len(devices)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """The process's environment with values that it lacks, for a while."""
    lacking = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(lacking)
    try:
        yield
    finally:
        for name in lacking:
            del os.environ[name]


def chips_of(topology: str) -> int:
    """Chips of a slice such as "v5e:8x8"."""
    sizes = topology.partition(":")[2].split("x")
    return math.prod(int(size) for size in sizes if size.isdigit())


def closed(topology: str) -> tuple[bool, ...]:
    """Of each dimension of a slice such as "v5p:4x4x8", whether its ends are linked.

    Of three, where all are whole cubes, by optical switches; of two, the longest there are.
    """
    sizes = topology.partition(":")[2].split("x")
    ends = [size.isdigit() and int(size) % RING.get(len(sizes), 1) == 0 for size in sizes]
    return (all(ends),) * 3 if len(sizes) == 3 else (*ends, False)


def topology_devices(name: str, slices: int = 1) -> tuple[Chip, list[jax.Device]]:
    """The chip of a topology such as "v5e:8x8", and devices to compile for, without any TPU.

    Raises:
        UserError: libtpu is not installed, or knows no such topology.
    """
    from jax.experimental import topologies

    kind = name.partition(":")[0]
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    sizes = name.partition(":")[2].split("x")
    if len(sizes) == 2 and any(size.isdigit() and int(size) > SIDE for size in sizes):
        raise UserError(
            f"--topology {name}: a slice of {kind} has at most {SIDE}x{SIDE} chips; "
            "add --slices for more"
        )
    if any(closed(name)):  # else links are planned for that are not used
        options["wrap"] = closed(name)
    if set(sizes) == {"1"}:  # one chip, which libtpu else takes for a part of a host's four
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":
        options["chip_config_name"] = "megacore"
    try:
        with _environment(AHEAD):
            topology = topologies.get_topology_desc(topology_name=name, platform="tpu", **options)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        mend = " Try pip install 'ftjax[tpu]'." if "not installed" in reason else ""
        raise UserError(f"--topology {name}: {reason}{mend}") from error
    return CHIPS[kind], list(topology.devices)
