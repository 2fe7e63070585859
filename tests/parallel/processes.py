"""One command in several processes over loopback, as on several hosts."""

import random
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress

from tests.conftest import environment
from tests.forked import Forked

MAIN = "ftjax.commands.entry:main"


def free_port(first: int = 20_000, last: int = 30_000) -> int:
    """Not of those that the system gives to others, which could take it before it is bound."""
    for port in random.sample(range(first, last), 100):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("localhost", port))
            return port
    raise OSError("no port is free")


def named(processes: int) -> list[dict[str, str]]:
    """What tells each process of the others, by hand; one alone is told nothing."""
    if processes == 1:
        return [{}]
    shared = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    return [shared | {"JAX_PROCESS_ID": str(number)} for number in range(processes)]


def by_slurm(processes: int) -> list[dict[str, str]]:
    """What srun tells each task of a step on this machine; JAX makes a port of the job's number."""
    shared = {
        "SLURM_JOB_ID": str(free_port(61_440, 65_536) - 61_440),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": str(processes),
        "SLURM_NTASKS": str(processes),
    }
    each = ({"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)} for n in range(processes))
    return [shared | own for own in each]


def start(
    command: Sequence,
    processes: int,
    devices: int = 8,
    calls: Mapping[int, str] | None = None,
    told: Callable[[int], list[dict[str, str]]] = named,
) -> list[Forked]:
    """A command on `devices` in as many processes.

    Args:
        command: its arguments.
        processes: how many.
        devices: of all together.
        calls: process → what it runs instead of `ftjax`, see `Forked`.
        told: how many there are → what tells each of the others.
    """
    env = environment(devices // processes)
    return [
        Forked(command, env | variables, together=True, call=(calls or {}).get(number, MAIN))
        for number, variables in enumerate(told(processes))
    ]


def ended(processes: Sequence[Forked], codes: Collection[int] = (0,)) -> list[str]:
    """What each wrote, once all have ended; their exit codes are `codes`, in any order."""
    try:
        outputs = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert {process.returncode for process in processes} == set(codes), outputs
    return outputs
