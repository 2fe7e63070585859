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
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version, this process
    held = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable ones, of twice 32
    libc.capget(header, held)
    held[0] &= ~(1 << 1)
    libc.capset(header, held)
    return cli.main(arguments)
