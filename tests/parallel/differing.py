"""What two processes say that do not see, hold or do the same, one thing after another."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from ftjax.commands import entry as cli
from ftjax.config import default_config
from ftjax.errors import UserError
from ftjax.parallel.agreement import broadcast, first, raise_together, require_same
from ftjax.workdir.lock import Lock
from ftjax.workdir.shared import require_same_config, require_shared_folder


def main(arguments: Sequence[str]) -> int:
    """Says all of it; the second process too, whose output is else dropped."""
    folder = Path(arguments[0])
    cli.start_jax()
    number, said = jax.process_index(), []

    def refused(ask: Callable[[], object]) -> None:
        try:
            said.append(f"gave {ask()!r}")
        except (UserError, OSError) as error:
            said.append(str(error))

    def by_first() -> str:
        if number:
            raise AssertionError("the second process decides nothing")
        raise PermissionError(f"{folder} is closed")

    config = default_config("full")
    refused(lambda: require_same_config(config))
    config.data.path = f"of/{number}"  # which may differ
    refused(lambda: require_same_config(config))
    config.seed = number
    refused(lambda: require_same_config(config))
    with Lock(folder / f"{number}"):
        refused(lambda: require_shared_folder(folder / f"{number}", wait=0.5))
    with Lock(folder / "shared"):
        refused(lambda: require_shared_folder(folder / "shared"))
    refused(lambda: first(by_first))
    long = [number, float("inf"), "é" * 2000]
    refused(lambda: first(lambda: long) == [0, *long[1:]])
    refused(lambda: raise_together(UserError("mine") if number else None, "another's"))
    refused(lambda: raise_together(None if number else UserError("the first's"), "another's"))
    refused(lambda: require_same("texts", [np.array(["a", f"{1}"], object), "\ud800"]))
    refused(lambda: require_same("numbers", [np.array([number])]))
    refused(lambda: broadcast(f"{number}"))
    (folder / f"said_{number}").write_text("\n".join(said), encoding="utf-8")
    return 0
