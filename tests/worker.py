"""Commands one after another in one process, which then has imported and traced what the next need.

What a command does is the same but for its start and its end, which `tests/forked.py` tries in a
process of each command, and `tests/test_cli.py` as users do.
"""

import gc
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import NamedTuple, TextIO

from tests.forked import Forked


class Said(NamedTuple):
    """What a command ended with."""

    returncode: int
    stdout: str
    stderr: str


class Worker:
    """A process that runs commands.

    Args:
        env: its environment, whose `XLA_FLAGS` hold for all commands.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        path = str(Path(tempfile.mkdtemp()) / "socket")
        with Listener(path, "AF_UNIX") as listening:
            self._process = Forked([path], env, call="tests.worker:serve")
            self._channel = listening.accept()

    def __call__(self, arguments: Sequence, env: Mapping[str, str], input: str = "") -> Said:
        """Runs a command.

        Raises:
            ConnectionError: it ended the process.
        """
        self._channel.send(([*map(str, arguments)], dict(env), input))
        try:
            return Said(*self._channel.recv())
        except EOFError:
            worker.cache_clear()
            raise ConnectionError(f"the worker ended: {self._process.communicate()}") from None


@cache
def worker(flags: str) -> Worker:
    """The process of all commands whose `XLA_FLAGS` these are, started once."""
    return Worker({**os.environ, "XLA_FLAGS": flags})


def serve(arguments: Sequence[str]) -> int:
    """Runs commands until nobody asks for more."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    with Client(arguments[0], "AF_UNIX") as channel:
        while True:
            try:
                asked = channel.recv()
            except EOFError:
                return 0
            channel.send(tuple(run(*asked)))


def run(arguments: Sequence[str], env: Mapping[str, str], input: str) -> Said:
    """One command, with files in the places of stdin, stdout and stderr."""
    from ftjax.commands.entry import main

    os.environ.clear()
    os.environ.update(env)
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
        files[0].write(input)
        files[0].seek(0)
        for number, file in enumerate(files):
            os.dup2(file.fileno(), number)
        code, sys.stdin = 1, files[0]
        try:
            code = main(arguments)
        except SystemExit as error:  # as of arguments that are not understood
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        return Said(code, *(text_of(file) for file in files[1:]))


def text_of(file: TextIO) -> str:
    """What was written to a file through its number."""
    file.seek(0)
    return file.read()
