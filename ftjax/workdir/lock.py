"""One trainer a work folder: a file that says which process holds it, and that it still lives."""

import hashlib
import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import jax

from ftjax.errors import UserError
from ftjax.files import write_text
from ftjax.parallel.agreement import broadcast, first
from ftjax.remote import create, is_remote, text_of

NAME = "lock.json"
BEAT = 10.0  # seconds between two signs of life
STALE = 60.0  # seconds without one after which a holder elsewhere counts as dead
_HELD: set[str] = set()  # tokens of this process, which may have been interrupted while it let go


@dataclass(frozen=True)
class Holder:
    """A process that trains in a work folder.

    Attributes:
        token: that no other holder has.
        host: its name.
        machine: within which `pid` is a process: one start of a system, one container.
        pid: of the process.
        started: when it started, as its machine counts: numbers of processes are used again.
        since: when it took the folder, UTC.
        beats: signs of life so far.
    """

    token: str
    host: str
    machine: str
    pid: int
    started: str
    since: str
    beats: int = 0

    @classmethod
    def this(cls) -> "Holder":
        """The process that asks."""
        pid, now = os.getpid(), f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        return cls(uuid4().hex, socket.gethostname(), machine(), pid, started(pid) or "", now)

    @classmethod
    def read(cls, text: str) -> "Holder | None":
        """What a lock's file says; None where it was cut short."""
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError):
            return None

    def text(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, which took it at {self.since} UTC"


def machine() -> str:
    """What tells apart machines, their restarts, and containers, each with its own processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # of a system without them
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def started(pid: int) -> str | None:
    """When a process of this machine started; "" where the system does not say.

    None where there is none, or it only waits to be buried.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:  # of another user
        pass
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # a system without /proc, or one that hides it
        return ""
    return None if state in "ZX" else fields[18]


class Lock:
    """Holds a work folder, and gives signs of life, from entry to exit.

    A holder on this machine is asked for by its process number and start. Of one elsewhere, on a
    shared file system or an object store, nothing is known but its signs of life, which are waited
    for: no clocks are compared. Readers need no lock. Of several processes of a run the first holds
    it, and all learn what became of it.

    Args:
        workdir: made if absent.
        beat: seconds between two signs of life.
        stale: seconds without one, after which a holder elsewhere counts as dead.
    """

    def __init__(self, workdir: Path, beat: float = BEAT, stale: float = STALE) -> None:
        self._workdir, self._path = workdir, workdir / NAME
        self._beat, self._stale = beat, stale
        self._me, self._ended = Holder.this(), threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> "Lock":
        first(self._take)
        return self

    def __exit__(self, *error: object) -> None:
        _HELD.discard(self._me.token)
        if jax.process_index() != 0:
            return
        self._ended.set()
        self._thread.join()
        with suppress(Exception):  # a lock that is left is that of a process that has ended
            if self._held():
                self._path.unlink()
        self._clear()

    def check(self) -> None:
        """To be called before anything is written that a trainer after this one would read.

        Raises:
            UserError: this process gave no sign of life for so long that another took its place.
        """
        if broadcast(jax.process_index() == 0 and self._lost()):
            raise UserError(
                f"--workdir {self._workdir} was taken over while this process was suspended or cut "
                f"off for more than {self._stale:g} s, or its {NAME} was removed; what it did "
                "since its last checkpoint is left to the other"
            )

    def _take(self) -> None:
        self._made = not is_remote(self._workdir) and not self._workdir.exists()
        self._workdir.mkdir(parents=True, exist_ok=True)
        _HELD.add(self._me.token)
        try:
            while not create(self._path, self._me.text()):
                if (text := text_of(self._path)) is not None:
                    self._require_dead(text)
                    self._remove(text)
            self._thread.start()
        except BaseException:
            _HELD.discard(self._me.token)
            self._clear()
            raise

    def _clear(self) -> None:
        """Removes the folder where it was made here and nothing came of it."""
        if self._made:
            with suppress(OSError):  # it is not empty, or has gone
                self._workdir.rmdir()

    def _require_dead(self, text: str) -> None:
        """Returns once the holder of a lock is known to be dead, or has gone.

        Raises:
            UserError: it lives.
        """
        holder = Holder.read(text)
        if holder and holder.machine == self._me.machine:
            mine = (holder.pid, holder.started) == (self._me.pid, self._me.started)
            if mine and holder.token not in _HELD:
                return
            now = started(holder.pid)
            if now and now == holder.started:
                raise self._refusal(holder)
            if now != "" and holder.started:  # it has ended, and its number may be another's
                return
        who = holder or "its holder"
        print(f"{self._path}: waiting {self._stale:g} s for a sign of life of {who}", flush=True)
        end = time.monotonic() + self._stale
        while time.monotonic() < end:
            time.sleep(self._beat / 10)
            now = text_of(self._path)
            if now is None:
                return
            if now != text:  # also where it is of another version, and says what is not read here
                raise self._refusal(Holder.read(now))

    def _refusal(self, holder: Holder | None) -> UserError:
        return UserError(
            f"--workdir {self._workdir} is being trained in by {holder or 'another process'}: wait "
            "until it ends, stop it, or use another --workdir"
        )

    def _remove(self, text: str) -> None:
        """Removes a dead holder's lock: of several that would, one does, and no lock but that."""
        guard = self._path.with_name(f"{NAME}.{hashlib.sha256(text.encode()).hexdigest()[:16]}")
        if create(guard, self._me.text()):
            if text_of(self._path) == text:
                self._path.unlink(missing_ok=True)
            guard.unlink(missing_ok=True)
            return
        end = time.monotonic() + self._stale
        while text_of(guard) is not None:
            if time.monotonic() > end:  # who began it has died over it
                guard.unlink(missing_ok=True)
            time.sleep(self._beat / 10)

    def _held(self) -> bool:
        """Whether this process holds the folder."""
        holder = Holder.read(text_of(self._path) or "")
        return holder is not None and holder.token == self._me.token

    def _lost(self) -> bool:
        """Whether it holds the folder no more, as far as can be seen."""
        try:
            return not self._held()
        except Exception:  # a disk or a store that fails for a while, by any error
            return False

    def _live(self) -> None:
        beats = 0
        while not self._ended.wait(self._beat):
            beats += 1
            try:
                if not self._held():
                    return
                write_text(self._path, replace(self._me, beats=beats).text())
            except Exception:  # of a disk or a store: the next may come through
                continue
