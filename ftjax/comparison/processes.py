"""Processes of a study's runs, which a signal to the study reaches too."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

from ftjax.errors import Stopped
from ftjax.process import of_ftjax


class Processes:
    """Those that are running, and the signal that stops them.

    Attributes:
        stopped: number of the signal; 0 while none has come.
    """

    def __init__(self) -> None:
        self.stopped, self._interrupted = 0, False
        self._running: set[subprocess.Popen] = set()

    def run(self, arguments: Sequence[str], output: IO[bytes] | None = None) -> int:
        """Exit code of `ftjax` with arguments, once it has ended.

        Args:
            arguments: of the command.
            output: where it prints; None for where this process does.

        Raises:
            Stopped: the study is to stop; the command has ended, or was not started.
        """
        if self.stopped:
            raise Stopped(self.stopped)
        errors = None if output is None else subprocess.STDOUT
        command, environment = of_ftjax(arguments)
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        self._running.add(process)
        if self.stopped:  # while it was started
            process.terminate()
        code = process.wait()
        self._running.discard(process)
        if self.stopped:
            raise Stopped(self.stopped)
        return code

    def stop(self, number: int) -> None:
        """Has all runs save and end; by a second Ctrl-C, end at once.

        A terminal sends its Ctrl-C to them as well, where two would have them not save: SIGTERM.
        """
        again = number == signal.SIGINT and self._interrupted
        self._interrupted |= number == signal.SIGINT
        self.stopped = self.stopped or number
        if not again:
            print("\nstopping: runs save first; Ctrl-C again leaves at once", file=sys.stderr)
        for process in list(self._running):
            if again:
                process.kill()
            else:
                process.terminate()
