"""Starting on several hosts, and stopping with them."""

import os
import sys
import time

import jax

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
LOST = 3  # exit code where another process was lost
LINGER = 10  # seconds that the leader, whose end ends all, leaves the others to say why they stop


def join() -> None:
    """Joins the other processes of the run, where the environment says that there are some.

    TPU pods, SLURM and GKE are recognized by JAX itself; elsewhere set JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. Alone, nothing happens.
    """
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):
        jax.distributed.initialize(
            os.environ["JAX_COORDINATOR_ADDRESS"],
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    elif several or "," in hosts:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)


def leave(error: BaseException) -> None:
    """Stops this process at once where another of the run is lost; returns where it is alone.

    A usual exit would wait for the one that is lost.
    """
    if jax.process_count() == 1:
        return
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    print(
        f"error: process {jax.process_index()} of {jax.process_count()}: another process of the "
        f"run was lost ({reason}); the same command, on as many processes or on others, goes on "
        "from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    if jax.process_index() == 0:
        time.sleep(LINGER)
    os._exit(LOST)
