"""Checkpoints of a work folder as they are read, by a run that goes on and by all other readers.

Nothing in the folder is changed: a run may be saving there.
"""

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from ftjax.errors import UserError, summary
from ftjax.paths import Flat, flatten, unflatten
from ftjax.remote import is_remote, of_store
from ftjax.training.step import State
from ftjax.workdir.checksums import text_sum


def _not_of_orbax(record: logging.LogRecord) -> bool:
    """Whether anything but orbax logs it, which raises what matters, or writes that it gave up."""
    trace = record.exc_info[2] if record.exc_info else None
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    return not any("orbax" in Path(file).parts for file in (record.pathname, *files))


for _name in ("absl", "asyncio"):  # others' records stay
    logging.getLogger(_name).addFilter(_not_of_orbax)

# What files that are cut short, lost or overwritten raise; the rest is no fault of theirs.
DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    RecursionError,
)
PASSING = (  # status codes that storage reports as a ValueError
    "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "ABORTED",
    "CANCELLED",
)


class Unreadable(UserError):
    """A checkpoint that cannot be read now, for want of memory, network or permission."""


class Damaged(Unreadable):
    """A checkpoint that is not what was written."""


class Saved:
    """The `checkpoints/` of a work folder, read only.

    Each host reads for itself and waits for no other, which may be unable to.
    """

    def __init__(self, folder: Path) -> None:
        self._remote = is_remote(folder)
        self.folder = epath.Path(folder if self._remote else folder.absolute())
        host = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(host, {host}, f"host_{host}")
        options = ocp.CompositeOptions(multiprocessing_options=alone)
        handler = ocp.CompositeCheckpointHandler(composite_options=options, **items(alone))
        self._reader = ocp.Checkpointer(handler, multiprocessing_options=alone)

    def steps(self) -> list[int]:
        """The complete checkpoints that are there now, by step."""
        folders = self.folder.iterdir() if self.folder.exists() else ()
        return sorted(int(path.name) for path in folders if path.name.isdecimal() and _whole(path))

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self.steps(), default=None)

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the state.

        Raises:
            Unreadable: and so do all below.
        """
        described = self._described(step)
        return {name: described[name] for name in described if name != "sums"}

    def sums(self, step: int) -> dict[str, Any]:
        """What the arrays of a step add up to, see `summed`; empty where an earlier version saved.

        They are for all hosts to compare at once, after all have read.
        """
        return self._described(step).get("sums", {})

    def restore(self, step: int, like: State) -> State:
        """The state of a step.

        Args:
            step: of the checkpoint.
            like: shapes, dtypes and shardings of its arrays, see `state_shapes`.
        """
        key = jax.eval_shape(jax.random.key_data, like.key).update(sharding=like.key.sharding)
        trees = {"params": unflatten(like.best_params), "state": rest(like, key)}
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, trees)
        read = self._restore(step, **{k: ocp.args.StandardRestore(v) for k, v in shapes.items()})
        best, tree = flatten(read["params"]), read["state"]
        averaged = like.average is not None
        return State(
            step=tree["step"],
            params=flatten(tree["params"]) if averaged else best,
            opt_state=jax.tree.unflatten(
                jax.tree.structure(like.opt_state), jax.tree.leaves(tree["opt_state"])
            ),
            key=jax.random.wrap_key_data(tree["key"]),
            average=best if averaged else None,
        )

    def params(self, step: int, like: Flat | None) -> Flat:
        """The trainable leaves of a step, where they are evaluated their average.

        Args:
            step: of the checkpoint.
            like: their shapes, dtypes and shardings; None for the host's memory.
        """
        if like is None:
            saved = self.shapes(step)
            abstract = jax.tree.map(
                lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), saved
            )
        else:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, unflatten(like))
        return flatten(self._restore(step, params=ocp.args.StandardRestore(abstract))["params"])

    def close(self) -> None:
        self._reader.close()

    def _described(self, step: int) -> dict[str, Any]:
        meta = self._restore(step, meta=ocp.args.JsonRestore())["meta"]
        written = isinstance(meta, dict) and {"config", "progress"} <= meta.keys()
        described = {name: meta[name] for name in meta if name != "sha256"} if written else {}
        # Those of earlier versions have no sums
        if not written or meta.get("sha256") != (text_sum(described) if "sums" in meta else None):
            where = self.folder / str(step)
            raise Damaged(f"checkpoint {where} cannot be read: its meta is not what was written")
        return described

    def _restore(self, step: int, **items: Any) -> Any:
        with self._told_apart(step):
            read = self._reader.restore(self.folder / str(step), ocp.args.Composite(**items))
            return jax.block_until_ready({name: read[name] for name in items})

    def shapes(self, step: int) -> Any:
        """Shapes and dtypes of the trainable leaves of a step."""
        with self._told_apart(step):
            return self._reader.metadata(self.folder / str(step)).item_metadata["params"].tree

    @contextmanager
    def _told_apart(self, step: int) -> Iterator[None]:
        """Whether what goes wrong is the checkpoint's fault, the machine's, or our own."""
        try:
            yield
        except Exception as error:
            reason = error
            while reason.__cause__ is not None:  # Orbax wraps what its storage says
                reason = reason.__cause__
            what = f"checkpoint {self.folder / str(step)} cannot be read ({summary(reason)})"
            passing = any(code in str(reason) for code in PASSING)
            if not isinstance(reason, FileNotFoundError):
                passing = passing or of_store(reason)
            if isinstance(reason, DAMAGE) and not passing:
                raise Damaged(what) from error
            if passing or isinstance(reason, OSError | MemoryError):
                raise Unreadable(
                    f"{what}, which does not say that it is damaged: it stays as it is, and the "
                    "same command goes on from it once it can be read, or from the one before once "
                    "it is moved away"
                ) from error
            raise


def _whole(folder: epath.Path) -> bool:
    """Whether a checkpoint has been written to its end, and not deleted meanwhile."""
    try:
        return ocp.utils.is_checkpoint_finalized(folder)
    except (FileNotFoundError, ValueError) as error:
        if of_store(error) and not isinstance(error, FileNotFoundError):
            raise
        return False


def items(processes: ocp.options.MultiprocessingOptions) -> dict[str, Any]:
    """What a checkpoint consists of. Trainable leaves are apart: evaluation reads nothing else."""
    arrays = {"multiprocessing_options": processes}
    return {
        "state": ocp.StandardCheckpointHandler(**arrays),
        "params": ocp.StandardCheckpointHandler(**arrays),
        "meta": ocp.JsonCheckpointHandler(**arrays),
    }


def not_as_written(saved: Saved, step: int, paths: Sequence[str]) -> str:
    """What there is to say of a checkpoint whose arrays at `paths` have other sums."""
    where, more = saved.folder / str(step), f" and {len(paths) - 1} more" if paths[1:] else ""
    return f"checkpoint {where} cannot be read: {paths[0]}{more} is not what was written"


def summed(state: State) -> dict[str, Any]:
    """The arrays of a checkpoint whose sums are saved with it."""
    return {"params": state.best_params, "state": rest(state, jax.random.key_data(state.key))}


def rest(state: State, key: Any) -> dict[str, Any]:
    """The state but for what is evaluated, as plain containers; optimizer leaves are numbered.

    Args:
        state: of arrays, or of their shapes.
        key: the data of its key.
    """
    return {
        "step": state.step,
        "opt_state": dict(
            (f"{i:05d}", leaf) for i, leaf in enumerate(jax.tree.leaves(state.opt_state))
        ),
        "key": key,
        **({} if state.average is None else {"params": unflatten(state.params)}),
    }
