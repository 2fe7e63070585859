"""What all hosts of a run must share: its configuration, and its work folder."""

import time
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from ftjax.config import flat_keys
from ftjax.errors import UserError
from ftjax.parallel.agreement import first, raise_together, require_same
from ftjax.remote import text_of
from ftjax.workdir.folder import unplaced
from ftjax.workdir.lock import NAME, Holder

WAIT = 10.0  # seconds after which a file of another host is there, or the folder is not shared


def require_same_config(config: ConfigDict) -> None:
    """Raises UserError in all processes where one has another configuration, paths excepted."""
    flat = flat_keys(config)
    require_same("the configuration", (f"{k}={unplaced(k, flat[k])}" for k in sorted(flat)))


def require_shared_folder(workdir: Path, wait: float = WAIT) -> None:
    """Raises UserError in all processes where one does not see the first one's work folder.

    Args:
        workdir: which the first process has locked.
        wait: seconds that a file may take to be seen.
    """
    token, end, problem = first(partial(_token, workdir)), time.monotonic() + wait, None
    while _token(workdir) != token:
        if time.monotonic() > end:
            problem = UserError(_message(workdir))
            break
        time.sleep(wait / 100)
    raise_together(problem, _message(workdir))


def _token(workdir: Path) -> str | None:
    holder = Holder.read(text_of(workdir / NAME) or "")
    return holder and holder.token


def _message(workdir: Path) -> str:
    return (
        f"--workdir {workdir} is not the same folder on all hosts: it must be on a disk that they "
        "share, or in an object store as gs://..."
    )
