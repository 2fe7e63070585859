"""Checkpoints by Orbax: asynchronous, atomic, the newest and the best.

A checkpoint holds the trainable leaves, optimizer state, step, RNG, data position, progress,
configuration and the base model's fingerprint; never the frozen base.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ftjax.errors import UserError, summary
from ftjax.parallel.agreement import worst
from ftjax.paths import unflatten
from ftjax.training.step import State
from ftjax.workdir.checksums import array_sums, text_sum
from ftjax.workdir.restore import Saved, items, summed


class _NewestAndBest:
    """Keeps the `keep` newest checkpoints and the one of step `best`."""

    def __init__(self, keep: int) -> None:
        self.keep, self.best = keep, -1

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        newest = len(checkpoints) - self.keep
        return [i >= newest or info.step == self.best for i, info in enumerate(checkpoints)]


class Checkpoints(Saved):
    """The `checkpoints/` of a work folder, of the run that writes them.

    Args:
        folder: made if absent.
        keep: how many of the newest to keep, besides the best.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        super().__init__(folder)
        self._policy, self._broken = _NewestAndBest(keep), False
        self._thread, self._writing = ThreadPoolExecutor(1, "checkpoint"), None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, cleanup_tmp_directories=True
        )
        self._writer = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_handlers=items(ocp.options.MultiprocessingOptions()),
        )

    def save(self, state: State, meta: Mapping[str, Any], best_step: int) -> None:
        """Starts writing the state; returns before it is on disk, and when it may be donated.

        Raises:
            UserError: this or the save before could not be written.
        """
        step = int(state.step)
        self.wait()  # for the one before, which would be lost with this process
        self._policy.best = best_step
        if step in self._writer.all_steps():
            return
        # Told before the attempt: a failed write is told at great length, and waited for.
        problem = self._no_room(state)
        if worst(problem is not None):
            raise self._failed(step, problem or OSError("another host cannot write there"))
        arrays = summed(state)
        if jax.default_backend() != "cpu" or jax.process_count() > 1:
            self._write(step, arrays, meta)  # copied by Orbax, beside what devices have no room for
            return
        places = jax.tree.map(lambda leaf: leaf.sharding, arrays)
        copies, meta = jax.tree.map(np.array, arrays), deepcopy(meta)

        def write() -> None:
            self._write(step, jax.device_put(copies, places), meta)
            self._writer.wait_until_finished()

        self._writing = self._thread.submit(write)

    def _write(self, step: int, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        described = {**meta, "sums": array_sums(arrays)}
        saved = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays["state"]),
            params=ocp.args.StandardSave(unflatten(arrays["params"])),
            meta=ocp.args.JsonSave({**described, "sha256": text_sum(described)}),
        )
        try:
            self._writer.save(step, args=saved)
            self._writer.check_for_errors()
        except Exception as error:
            raise self._failed(step, error) from error

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            UserError: the last save could not be written.
        """
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
            self._writer.wait_until_finished()
        except UserError:
            raise
        except Exception as error:
            raise self._failed(None, error) from error

    def set_aside(self, steps: Sequence[int]) -> None:
        """Renames damaged checkpoints to STEP.unreadable, once for all hosts.

        Raises:
            UserError: they could not be renamed.
        """
        problem = None
        if steps and jax.process_index() == 0:
            try:
                for step in steps:
                    aside = self.folder / f"{step}.unreadable"
                    aside.rmtree(missing_ok=True)  # of the same step, set aside before
                    (self.folder / str(step)).rename(aside)
            except OSError as error:
                problem = error
        if worst(problem is not None):
            reason = "by the first host" if problem is None else summary(problem)
            raise UserError(f"damaged checkpoints of {self.folder} cannot be renamed ({reason})")
        self._writer.reload()

    def close(self) -> None:
        super().close()
        self._thread.shutdown()
        if not self._broken:  # a failed write has been told; closing would raise it again
            self._writer.close()

    def _no_room(self, state: State) -> OSError | None:
        """Why a state cannot be written, as far as that is known beforehand."""
        if self._remote:
            return None
        if not os.access(self.folder, os.W_OK):
            return PermissionError("no permission to write there")
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
        free = shutil.disk_usage(self.folder).free
        if free < 1.1 * needed:
            return OSError(f"{needed:,} bytes are needed, {free:,} are free")
        return None

    def _failed(self, step: int | None, error: Exception) -> UserError:
        self._broken = True
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        earlier = [s for s in self.steps() if s != step]
        last = f"step {max(earlier)} is kept" if earlier else "there is no earlier one"
        doubt = "" if isinstance(error, PermissionError) else " Is the disk full?"
        return UserError(
            f"{what} could not be written to {self.folder} ({summary(error)}); {last}.{doubt}"
        )
