"""`ftjax` on a disk that is full once the first tensor of a model is written."""

import errno
from collections.abc import Sequence
from typing import Any

from ftjax.commands import entry as cli
from ftjax.formats.hf import shards


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""

    def cast(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    shards._cast = cast
    return cli.main(arguments)
