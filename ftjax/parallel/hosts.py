"""Starting on several hosts, and stopping with them."""

import atexit
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Condition, Event, Lock, Thread
from typing import Any

import jax
from jax._src import clusters, distributed

from ftjax.errors import UserError

GIVEN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FIND = 300  # seconds that the first process may take to be there
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as dead
LOST = 3  # exit code where another process was lost
LINGER = 10  # seconds at most that the first, whose end ends all, waits for the others to leave
LEFT = "ftjax/left/"  # keys of those that have said it
NOTICE = "RECEIVED_PREEMPTION_NOTICE"  # key of JAX's coordination service: SIGTERM came to one
LOOK = 0.5  # seconds between two looks for it
TOGETHER = 20  # seconds that processes wait for each other to end at a notice
STOPPED = 128 + signal.SIGTERM  # exit code where they did
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


class End:
    """The end of all processes at SIGTERM to any of them, wherever they are.

    JAX's handler takes the signal, and its coordination service tells all. Where training stops by
    itself, at a step that all agree on, it is left to it: see `left_alone`. Processes that are not
    in the same part of a run do not end here, but there.

    Attributes:
        together: is held from where this process waits for the others to end.
    """

    def __init__(self) -> None:
        self.together = Lock()
        self._part, self._changed = 0, Condition()
        self._exits, self._thread = Event(), Thread(target=self._wait, daemon=True)

    def watch(self) -> None:
        """Looks for a notice from now on."""
        self._thread.start()
        atexit.register(self._stop)

    def _stop(self) -> None:
        """Before a usual exit, in which a thread that is in the client would be a crash."""
        self._exits.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()

    def _wait(self) -> None:
        """Ends this process at a notice, once all can; returns where there is none."""
        state, part = distributed.global_state, -1
        while (client := state.client) is not None and not _noticed(client):
            if self._exits.wait(LOOK):
                return
        if client is None:  # whoever called ftjax has shut JAX's service down
            return
        while (part := self._next(part)) is not None:
            with self.together:
                try:
                    state.client.wait_at_barrier(f"ftjax ends in part {part}", 1000 * TOGETHER)
                except jax.errors.JaxRuntimeError:  # others are in another part
                    continue
                if state.process_id == 0:
                    print("stopped by SIGTERM: run the same command to go on", flush=True)
                    time.sleep(1)  # its end would end the others
                os._exit(STOPPED)

    def _next(self, part: int) -> int | None:
        """The next part in which processes may end, once it is there; None at the exit."""

        def there() -> bool:
            return self._exits.is_set() or (self._part > part and not self._part % 2)

        with self._changed:
            self._changed.wait_for(there)
            return None if self._exits.is_set() else self._part

    def _go_on(self) -> None:
        with self._changed:
            self._part += 1
            self._changed.notify_all()

    @contextmanager
    def left_alone(self) -> Iterator[Callable[[], None]]:
        """Where notices are not acted on; nor after it, where what is given has been called."""
        multihost = distributed.global_state.num_processes not in (None, 1)
        stopped: list[bool] = []
        if multihost:
            self._go_on()
        try:
            yield lambda: stopped.append(True)
        finally:
            if multihost and not stopped:
                self._go_on()


_END = End()
left_alone = _END.left_alone


def _noticed(client: Any) -> bool:
    """Whether a notice came to any process."""
    try:
        client.key_value_try_get(NOTICE)
    except jax.errors.JaxRuntimeError:  # there is none, or the first process has gone
        return False
    return True


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
        _END.watch()
        if others.number:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def processes() -> Processes | None:
    """The processes of the run as the environment has them; None where this one is alone.

    Clusters are those that JAX recognizes: TPU slices on virtual machines and on GKE, also several
    of them, steps of SLURM, Open MPI, indexed jobs of Kubernetes. What `GIVEN` says goes before.

    Raises:
        UserError: some of `GIVEN` is said, and no cluster says the rest.
    """
    named = {name: os.environ[name] for name in GIVEN if os.environ.get(name)}
    env = None if len(named) == len(GIVEN) else _cluster()
    if env is None and len(named) < len(GIVEN):
        if not named:
            return None
        lacking = " and ".join(name for name in GIVEN if name not in named)
        raise UserError(
            f"{' and '.join(named)} is set, and {lacking} is not: a run of several processes needs "
            "all three, a run of one none"
        )
    address, count, number = (named.get(name) for name in GIVEN)
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
    with _END.together:  # where all end at a notice, this error may come of it
        _leave(state, error, code, printed)


def _leave(state: Any, error: BaseException, code: int, printed: bool) -> None:
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
    # Not waited for without end: what it asks may be what is lost.
    part, seconds = (_see_off, LINGER) if state.process_id == 0 else (_sign_off, 1)
    last = Thread(target=part, args=[state], daemon=True)
    last.start()
    last.join(seconds)
    os._exit(code)


def _see_off(state: Any) -> None:
    """Waits until all other processes have said why they stop."""
    with suppress(jax.errors.JaxRuntimeError):
        while len(state.client.key_value_dir_get(LEFT)) < state.num_processes - 1:
            time.sleep(0.1)


def _sign_off(state: Any) -> None:
    with suppress(jax.errors.JaxRuntimeError):
        state.client.key_value_set(f"{LEFT}{state.process_id}", "left")
