"""Checkpoints by Orbax: asynchronous, atomic, the newest and the best.

A checkpoint holds the trainable leaves, optimizer state, step, RNG, data position, progress,
configuration and the base model's fingerprint; never the frozen base.
"""

import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from ftjax.errors import UserError
from ftjax.paths import Flat, flatten, unflatten
from ftjax.remote import is_remote
from ftjax.training.step import State

logging.getLogger("absl").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # writes abandoned after a failed one


class Unreadable(UserError):
    """A checkpoint that cannot be read."""


class _NewestAndBest:
    """Keeps the `keep` newest checkpoints and the one of step `best`."""

    def __init__(self, keep: int) -> None:
        self.keep, self.best = keep, -1

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        newest = len(checkpoints) - self.keep
        return [i >= newest or info.step == self.best for i, info in enumerate(checkpoints)]


class Checkpoints:
    """The `checkpoints/` of a work folder.

    Args:
        folder: made if absent.
        keep: how many of the newest to keep, besides the best.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        self._remote = is_remote(folder)
        self.folder = epath.Path(folder if self._remote else folder.absolute())
        self._policy, self._broken = _NewestAndBest(keep), False
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "params": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: State, meta: Mapping[str, Any], best_step: int) -> None:
        """Starts writing the state; returns before it is on disk.

        Raises:
            UserError: this or the save before could not be written.
        """
        self._policy.best = best_step
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
        # Told before the attempt: a failed write is told at great length, and waited for.
        if not (self._remote or os.access(self.folder, os.W_OK)):
            raise self._failed(step, PermissionError("no permission to write there"))
        free = math.inf if self._remote else shutil.disk_usage(self.folder).free
        if free < 1.1 * needed:
            raise self._failed(step, OSError(f"{needed:,} bytes are needed, {free:,} are free"))
        # The trainable leaves are an item of their own, so that evaluation reads nothing else.
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_rest(state)),
            params=ocp.args.StandardSave(unflatten(state.best_params)),
            meta=ocp.args.JsonSave(dict(meta)),
        )
        try:
            self._manager.save(step, args=items)
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            UserError: the last save could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(None, error) from error

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the state."""
        items = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._restore(step, items)["meta"]

    def restore(self, step: int, like: State) -> State:
        """The state of a step, in the shardings of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _rest(like))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        best = self.params(step, like.best_params)
        tree = {"average": None, "params": best, **self._restore(step, items)["state"]}
        if like.average is not None:
            tree |= {"average": best, "params": flatten(tree["params"])}
        # Fresh buffers: the step donates them, and restored ones may be views of foreign memory.
        tree = jax.tree.map(lambda x: x.copy(), tree)
        leaves = jax.tree.leaves(tree["opt_state"])
        return State(
            step=tree["step"],
            params=tree["params"],
            opt_state=jax.tree.unflatten(jax.tree.structure(like.opt_state), leaves),
            key=jax.random.wrap_key_data(tree["key"]),
            average=tree["average"],
        )

    def params(self, step: int, like: Flat | None) -> Flat:
        """The trainable leaves of a step, in the shardings of `like`; None: in host memory."""
        if like is None:
            saved = self._saved(step)
            abstract = jax.tree.map(
                lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), saved
            )
        else:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, unflatten(like))
        items = ocp.args.Composite(params=ocp.args.StandardRestore(abstract))
        return flatten(self._restore(step, items)["params"])

    def set_aside(self, step: int) -> Path:
        """Renames a checkpoint that cannot be read, so that an earlier one is the newest."""
        aside = self.folder / f"{step}.unreadable"
        if jax.process_index() == 0:
            aside.rmtree(missing_ok=True)  # of the same step, set aside before
            (self.folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"checkpoint {step} is set aside")
        self._manager.reload()
        return aside

    def close(self) -> None:
        if not self._broken:  # a failed write has been told; closing would raise it again
            self._manager.close()

    def _restore(self, step: int, items: ocp.args.Composite) -> Any:
        try:
            return self._manager.restore(step, args=items)
        except Exception as error:
            raise self._unreadable(step, error) from error

    def _saved(self, step: int) -> Any:
        """Shapes and dtypes of the trainable leaves of a step."""
        try:
            return self._manager.item_metadata(step)["params"].tree
        except Exception as error:
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> Unreadable:
        return Unreadable(
            f"checkpoint {self.folder / str(step)} cannot be read "
            f"({type(error).__name__}: {_first_line(error)})"
        )

    def _failed(self, step: int | None, error: Exception) -> UserError:
        self._broken = True
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        kept = [s for s in self._manager.all_steps(read=True) if s != step]
        last = f"step {max(kept)} is kept" if kept else "there is no earlier one"
        doubt = "" if isinstance(error, PermissionError) else " Is the disk full?"
        return UserError(
            f"{what} could not be written to {self.folder} ({type(error).__name__}: "
            f"{_first_line(error)}); {last}.{doubt}"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:300]


def _rest(state: State) -> dict[str, Any]:
    """The state but for what is evaluated, as plain containers; optimizer leaves are numbered."""
    return {
        "step": state.step,
        "opt_state": dict(
            (f"{i:05d}", leaf) for i, leaf in enumerate(jax.tree.leaves(state.opt_state))
        ),
        "key": jax.random.key_data(state.key),
        **({} if state.average is None else {"params": unflatten(state.params)}),
    }
