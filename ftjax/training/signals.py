"""What a run does when it is asked to stop: all its hosts save at one step, and end there."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread, current_thread, main_thread
from types import FrameType

import jax
from jax.experimental import multihost_utils

from ftjax.parallel.hosts import left_alone

STOPS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_signal(step: int) -> Iterator[Callable[[int], int]]:
    """What says after each step whether the run stops there: the signal's number, or 0.

    SIGTERM and Ctrl-C stop it; Ctrl-C a second time leaves at once. On several hosts a signal to
    any of them is a notice to all, and JAX's coordination service agrees on a step that none has
    passed: the handler of SIGTERM is its own there. Before and after, see `parallel.hosts.End`.

    Args:
        step: that the run starts or goes on at. Every later one must be asked about.
    """
    multihost, came = jax.process_count() > 1, []
    # The step agreed on is one more than the last that any host asked about, which is none where
    # the signal came before training: so each asks about every number in turn.
    early = multihost and any(
        map(multihost_utils.reached_preemption_sync_point, range(1, step + 1))
    )

    def note(number: int) -> None:
        if number != signal.SIGINT:
            came.append(number)
            return
        if number in came:
            os._exit(128 + number)
        came.append(number)
        print("\nstopping: saves first; Ctrl-C again leaves at once", file=sys.stderr, flush=True)
        if multihost:
            os.kill(os.getpid(), signal.SIGTERM)

    def received(_: int) -> int:
        return came[0] if came else 0

    with left_alone() as stops, listening(STOPS[1:] if multihost else STOPS, note):

        def agreed(step: int) -> int:
            if not (early or multihost_utils.reached_preemption_sync_point(step)):
                return 0
            stops()
            return received(step) or signal.SIGTERM

        yield agreed if multihost else received


class Interrupt:
    """A handler of Ctrl-C as Python's, which remembers that it came.

    Python drops what is raised while it collects garbage, where JAX has a callback.
    """

    def __init__(self) -> None:
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


@contextmanager
def hearing() -> Iterator[None]:
    """Where a Ctrl-C that Python drops is raised once training begins, which would go on."""
    plain = signal.getsignal(signal.SIGINT)
    # Elsewhere than in the main thread signals are the caller's, as a handler of its own is.
    hears = plain is signal.default_int_handler and current_thread() is main_thread()
    if hears:
        signal.signal(signal.SIGINT, Interrupt())
    try:
        yield
    finally:
        if hears:
            signal.signal(signal.SIGINT, plain)


@contextmanager
def listening(signals: tuple[int, ...], note: Callable[[int], None]) -> Iterator[None]:
    """Calls `note` at each signal, from a thread: the main one may be waiting in a program.

    Elsewhere than in the main thread signals are the caller's, and nothing is done.

    Raises:
        KeyboardInterrupt: one came before, and was dropped.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    try:
        old_descriptor = signal.set_wakeup_fd(writer.fileno())
    except ValueError:  # not in the main thread
        yield
        return
    old = {number: signal.signal(number, lambda *_: None) for number in signals}

    def listen() -> None:
        while number := reader.recv(1):
            if number[0] in signals:
                note(number[0])

    listener = Thread(target=listen, daemon=True)
    listener.start()
    try:
        if getattr(old.get(signal.SIGINT), "came", False):
            raise KeyboardInterrupt
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_descriptor)
        writer.close()
        listener.join()
        reader.close()
