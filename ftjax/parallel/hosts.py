"""Starting on several hosts."""

import os

import jax


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
        )
    elif several or "," in hosts:
        jax.distributed.initialize()
