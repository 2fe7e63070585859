"""Checkpoints of a run: what is saved with its state, and read again."""

from dataclasses import dataclass
from typing import Any

from ftjax.config.saved import from_json, to_json
from ftjax.errors import UserError
from ftjax.formats.folder import require_same
from ftjax.setup.model import Run
from ftjax.training.feed import Feed
from ftjax.training.memory import free
from ftjax.training.progress import Progress
from ftjax.training.recipe import Recipe
from ftjax.training.step import State
from ftjax.training.step_log import Row
from ftjax.workdir.checkpoints import Checkpoints
from ftjax.workdir.folder import length_before, refuse_differences
from ftjax.workdir.lock import Lock
from ftjax.workdir.records import Records


@dataclass(frozen=True)
class Saver:
    """Saves the state of a run with all that it needs to go on to the bit.

    Attributes:
        checkpoints: of the run.
        lock: of its work folder, which must still be this process's.
        records: whose rows must be on disk before a checkpoint is.
        feed: whose place in the data is saved.
        progress: of the run.
        run: whose configuration is saved, too.
        total: steps of the run.
        base: fingerprint of the base model.
    """

    checkpoints: Checkpoints
    lock: Lock
    records: Records
    feed: Feed
    progress: Progress
    run: Run
    total: int
    base: str

    def __call__(self, state: State) -> None:
        """Begins to save a state."""
        self.lock.check()
        self.records.keep()
        meta = {
            **self.feed.saved(),
            "progress": self.progress.saved(),
            "config": to_json(self.run.config),
            "total": self.total,
            "base": self.base,
        }
        self.checkpoints.save(state, meta, self.progress.best.step)

    def wait(self) -> None:
        """Returns when all is on disk."""
        self.checkpoints.wait()

    def skipped(self, step: int, row: Row) -> None:
        """Says that a step changed nothing.

        Raises:
            UserError: there have been more such steps than `train.skip_limit`.
        """
        what = f"loss is {row['loss']}, gradient norm {row['grad_norm']} at step {step}"
        count, limit = self.progress.skipped, self.run.config.train.skip_limit
        if count <= limit:
            self.records.say(f"{what}: skipped ({count} of at most {limit})")
            return
        self.wait()  # for the one that is being written
        last = self.checkpoints.latest()
        raise UserError(
            f"{what}: stopped, after {limit} that were skipped; the last good checkpoint is "
            f"{'none' if last is None else f'step {last}'}. A lower optimizer.learning_rate or "
            "clip_norm may help"
        )


def read_checkpoint(
    checkpoints: Checkpoints, run: Run, recipe: Recipe, base: str, step: int
) -> tuple[State, dict[str, Any], Progress]:
    """What a checkpoint holds: the state, what was saved beside it, and the progress in it.

    Args:
        checkpoints: of the run.
        run: the model in place, whose trainable leaves are given back.
        recipe: of the run.
        base: fingerprint of the base model.
        step: of the checkpoint.

    Raises:
        UserError: it is of another configuration or base model, or of a longer run.
    """
    meta, workdir = checkpoints.meta(step), checkpoints.folder.parent
    refuse_differences(str(workdir), from_json(meta["config"]), run.config, extend=True)
    require_same(workdir, meta["base"], run.folder, base)
    length_before(workdir, meta, recipe.total)
    shapes = recipe.state_shapes(run.trainable, run.mesh, step)
    free(run.trainable)  # which come from the checkpoint
    return checkpoints.restore(step, shapes), meta, Progress.read(meta["progress"])
