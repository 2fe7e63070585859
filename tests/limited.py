"""`ftjax` where it may not write: on a disk that is full, and without the privileges of root."""

import ctypes
import resource
from collections.abc import Sequence

from ftjax import cli


def full(arguments: Sequence[str]) -> int:
    """Runs the command with a limit on the size of files, which stands for a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return cli.main(arguments)


def unprivileged(arguments: Sequence[str]) -> int:
    """Runs the command without CAP_DAC_OVERRIDE, by which root writes everywhere."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
    return cli.main(arguments)
