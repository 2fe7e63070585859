"""Starting on several hosts, and stopping with them."""

import os
import re
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

import jax
from jax._src import clusters, distributed

from ftjax.errors import UserError

GIVEN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FIND = 300  # seconds that the first process may take to be there
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
LOST = 3  # exit code where another process was lost
LINGER = 10  # seconds that the leader, whose end ends all, leaves the others to say why they stop
# What JAX's coordination service, and the libraries that send, say where another is gone.
GONE = re.compile(
    r"heartbeat|coordination service|coordinationservice|another task died|has disconnected"
    r"|barrier (timed out|failed)|gloo/(transport|rendezvous)|gloo context"
    r"|remote process exited|ncclRemoteError",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and which this is.

    Attributes:
        address: host and port of the first.
        count: how many there are.
        number: of this one.
        devices: numbers of its node's devices that are its own; None for all.
    """

    address: str
    count: int
    number: int
    devices: list[int] | None = None


def join() -> None:
    """Joins the other processes of the run, where the environment says that there are some.

    The first alone prints; what is wrong, each says for itself.

    Raises:
        UserError: it says a part of what is needed.
    """
    others = processes()
    if others is not None:
        jax.distributed.initialize(
            others.address,
            others.count,
            others.number,
            others.devices,
            cluster_detection_method="deactivate",  # that is done
            heartbeat_timeout_seconds=HEARTBEAT,
        )
        if others.number:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def processes() -> Processes | None:
    """The processes of the run as the environment has them; None where this one is alone.

    Clusters are those that JAX recognizes: TPU slices on virtual machines and on GKE, also several
    of them, steps of SLURM, Open MPI, indexed jobs of Kubernetes. What `GIVEN` says goes before.

    Raises:
        UserError: some of `GIVEN` is said, and no cluster says the rest.
    """
    given = {name: os.environ[name] for name in GIVEN if os.environ.get(name)}
    env = None if len(given) == len(GIVEN) else _cluster()
    if env is None and len(given) < len(GIVEN):
        if not given:
            return None
        lacking = " and ".join(name for name in GIVEN if name not in given)
        raise UserError(
            f"{' and '.join(given)} is set, and {lacking} is not: a run of several processes needs "
            "all three, a run of one none"
        )
    address, count, number = (given.get(name) for name in GIVEN)
    count = _count(env) if count is None else _whole(GIVEN[1], count)
    if count == 1:
        return None
    number = env.get_process_id() if number is None else _whole(GIVEN[2], number)
    if number >= count:
        raise UserError(f"{GIVEN[2]}={number} must be below {GIVEN[1]}={count}")
    if address is None:
        port = os.environ.get("JAX_COORDINATOR_PORT")
        address = env.get_coordinator_address(FIND, port)
    return Processes(address, count, number, _devices(env, count))


def _whole(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{name}={text!r} must be a whole number")
    return int(text)


def _cluster() -> Any:
    """JAX's class of the cluster that this process runs in; None for none."""
    for env in clusters.ClusterEnv._cluster_types:
        # A pod that is not of an indexed job is no process of several, and JAX would refuse it.
        other = env is clusters.K8sCluster and "JOB_COMPLETION_INDEX" not in os.environ
        if not env.opt_in_only_method and not other and _present(env):
            return env
    return None


def _present(env: Any) -> bool:
    try:
        return env.is_env_present()
    except OSError:  # no metadata server answers: this is not Google's
        return False


def _count(env: Any) -> int:
    # A shell in an allocation is a step of one task, whatever the allocation's number.
    if env is clusters.SlurmCluster and "SLURM_STEP_NUM_TASKS" in os.environ:
        return int(os.environ["SLURM_STEP_NUM_TASKS"])
    try:
        return env.get_process_count()
    except OSError as error:  # of Google's metadata, which only its own machines have
        if "," not in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
            return 1
        raise UserError(
            "TPU_WORKER_HOSTNAMES names several hosts, and there is no metadata server that says "
            "of how many slices: set MEGASCALE_NUM_SLICES, MEGASCALE_SLICE_ID and "
            f"MEGASCALE_COORDINATOR_ADDRESS, or {', '.join(GIVEN)} ({error})"
        ) from error


def _devices(env: Any, count: int) -> list[int] | None:
    """JAX has a process see one device of several; not one that has a node for itself."""
    number = None if env is None else env.get_local_process_id()
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "0"))
    alone = nodes == count or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    own = os.environ.get("CUDA_VISIBLE_DEVICES", "").isdecimal()  # it was given one device
    return None if number is None or alone or own else [number]


def lost(error: BaseException) -> str:
    """What says that another process is gone, of an error or of what it came from; else ""."""
    cause: BaseException | None = error
    while cause is not None:
        if GONE.search(str(cause)):
            return str(cause).strip().splitlines()[0][:200]
        cause = cause.__cause__ or cause.__context__
    return ""


def leave(error: BaseException, code: int, printed: bool) -> None:
    """Ends this process of several at once, so that the others stop too; alone, it returns.

    A usual exit would wait for those that are lost, or that wait for this one.

    Args:
        error: why.
        code: exit code, where no other process was lost.
        printed: whether the error has been printed.
    """
    state = distributed.global_state  # asks for no devices, which may be what failed
    if state.client is None or state.num_processes == 1:
        return
    where = f"process {state.process_id} of {state.num_processes}"
    if reason := lost(error):
        code, printed = LOST, True
        print(
            f"error: {where}: another process of the run was lost ({reason}); the same command, on "
            "as many processes or on others, goes on from the last checkpoint",
            file=sys.stderr,
        )
    if not printed:
        print(f"error: {where} ends by its own error:", file=sys.stderr)
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    if state.process_id == 0:
        time.sleep(LINGER)
    os._exit(code)
