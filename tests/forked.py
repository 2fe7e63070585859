"""Commands in processes forked from one that has imported everything, since imports take longest.

What a command does is the same but for its start, which `tests/test_cli.py` tries as users do.
"""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path


class Forked:
    """A running command, with the part of `subprocess.Popen` that tests use.

    Args:
        arguments: of the command line.
        env: its environment.
        together: stderr goes where stdout goes.
        input: what it reads from stdin.
        call: "module:function" that is called with the arguments, and returns the exit code.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        together: bool = False,
        input: str = "",
        call: str = "ftjax.commands.entry:main",
    ) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._errors = self._output if together else tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.returncode: int | None = None
        self._channel = socket.socket(socket.AF_UNIX)
        self._channel.connect(_server())
        asked = {"arguments": [*map(str, arguments)], "env": dict(env), "call": call}
        request = json.dumps(asked).encode()
        typed = tempfile.TemporaryFile("w+")  # noqa: SIM115
        typed.write(input)
        typed.seek(0)
        files = [typed.fileno(), self._output.fileno(), self._errors.fileno()]
        socket.send_fds(self._channel, [len(request).to_bytes(8), request], files)
        self.pid = int.from_bytes(self._read(8))

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._channel], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code.

        Raises:
            subprocess.TimeoutExpired: it goes on after `timeout` seconds.
        """
        if self.returncode is None:
            if not select.select([self._channel], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("ftjax", timeout or 0.0)
            self._end()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        texts = []
        for file in (self._output, self._errors):
            file.seek(0)
            texts.append(file.read())
        return texts[0], texts[1]

    def send_signal(self, sent: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sent)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _end(self) -> None:
        self.returncode = int.from_bytes(self._read(8), signed=True)
        self._channel.close()

    def _read(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            part = self._channel.recv(count - len(found))
            if not part:
                raise ConnectionError("the process to fork from has died")
            found += part
        return found


@cache
def _server() -> str:
    """Starts the process that commands are forked from, once; its socket."""
    path = Path(tempfile.mkdtemp()) / "socket"
    server = subprocess.Popen([sys.executable, "-m", "tests.forked", str(path)])
    atexit.register(server.kill)
    while not path.exists():
        assert server.poll() is None, "the process to fork from has died"
        time.sleep(0.01)
    return str(path)


def serve(path: str) -> None:
    """Forks a command for each connection."""
    import_all()
    gc.freeze()  # what is imported is neither looked through nor copied in each process forked
    gc.set_threshold(100_000, 50, 100)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{path}.new")
    listening.listen()
    os.rename(f"{path}.new", path)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        channel, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            attend(channel)
            os._exit(0)
        channel.close()


def attend(channel: socket.socket) -> None:
    """Forks one command, says its number, and its exit code once it has ended."""
    start, files, *_ = socket.recv_fds(channel, 2**20, 3)
    size = int.from_bytes(start[:8])
    text = start[8:]
    while len(text) < size:
        text += channel.recv(size - len(text))
    request = json.loads(text)
    child = os.fork()
    if child == 0:
        channel.close()
        run(request, files)
    channel.sendall(child.to_bytes(8))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):  # whoever asked has ended, as at the end of the tests
        channel.sendall(code.to_bytes(8, signed=True))


def run(request: Mapping, files: Sequence[int]) -> None:
    """The command itself; it does not return."""
    import jax

    for number, file in enumerate(files):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(request["env"])
    code = 1
    try:
        module, _, name = request["call"].partition(":")
        code = getattr(importlib.import_module(module), name)(request["arguments"])
    except SystemExit as error:  # as of arguments that are not understood
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):  # as at a usual exit, which waits for the other processes
            jax.distributed.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def import_all() -> None:
    """What commands import, but for anything that starts a thread or a device."""
    import datasets  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import tensorboardX  # noqa: F401
    import transformers  # noqa: F401
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

    import ftjax.evaluation.predictor
    import ftjax.runs.train  # noqa: F401  # noqa: F401


if __name__ == "__main__":
    serve(sys.argv[1])
