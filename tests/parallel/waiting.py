"""`ftjax` that waits at a place of a run for a signal that ends it."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from ftjax.commands import entry as cli
from ftjax.runs import session, train


def preparing(arguments: Sequence[str]) -> int:
    """Waits with data that are not yet prepared."""
    train.read_data = _waits(arguments)
    return cli.main(arguments)


def testing(arguments: Sequence[str]) -> int:
    """Waits after the last step, before the test split is scored."""
    session._finish = _waits(arguments)
    return cli.main(arguments)


def _waits(arguments: Sequence[str]) -> Callable[..., Any]:
    workdir = Path(arguments[arguments.index("--workdir") + 1])

    def wait(*_: Any) -> None:
        workdir.with_name(f"waits_{jax.process_index()}").touch()
        time.sleep(60)

    return wait
