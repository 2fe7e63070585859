"""Runs that begin with what another run trained: `model.from_run`, and `model.from_step`."""

import shutil
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from ftjax.errors import UserError
from ftjax.evaluation.predictor import open_predictor
from ftjax.formats.export import Exported, export_hf, whole
from ftjax.formats.folder import fingerprint, locate, require_same
from ftjax.parallel.agreement import first
from ftjax.remote import is_remote, located
from ftjax.workdir.configuration import read_config
from ftjax.workdir.folder import START, begun, read_workdir


def begin(config: ConfigDict, workdir: Path) -> None:
    """Makes the model of `model.from_run` in the work folder, and lets `config` begin with it.

    What that run trained by its best step, or `model.from_step`, is merged into its base model, and
    its head comes with it; the method of `config` is put over that anew. `model.path` must be that
    run's base. The work folder holds the model, as Hugging Face's folder `start`, and needs the
    other run no more, whatever becomes of it. To go on with an adapter itself, export it, and start
    from `model.adapter`.

    Args:
        config: `model.path` becomes that folder.
        workdir: of the new run.

    Raises:
        UserError: the other run has no such step or another base, or its method cannot be merged.
    """
    if not config.model.from_run:
        return
    start = workdir / START
    if not first(partial(_is_there, config, start, workdir)):
        try:
            whole(start, partial(export_hf, exported=_earlier(config), own_head=True))
        except UserError as error:
            raise UserError(f"model.from_run={config.model.from_run!r}: {error}") from error
    config.model.path = str(start)


def _is_there(config: ConfigDict, start: Path, workdir: Path) -> bool:
    """Whether the model is made already; what is of a run that did not come to train is removed."""
    if (start / "config.json").exists() and (workdir / "config.json").exists():
        keys, saved = ("from_run", "from_step"), read_workdir(workdir).model
        if begun(workdir) or all(saved[key] == config.model[key] for key in keys):
            return True
    if start.exists():
        start.rmtree() if is_remote(start) else shutil.rmtree(start)
    return False


def _earlier(config: ConfigDict) -> Exported:
    """The other run's model, to be written."""
    where = located(config.model.from_run)
    earlier = open_predictor(where, read_config(where), config.model.from_step or None)
    folder, task = earlier.run.folder, earlier.run.task
    require_same(where, fingerprint(folder), locate(config.model.path))
    names = task.output_names(earlier.names)
    model = (folder, "", earlier.run.tuned, earlier.params, names, task.problem_type)
    return Exported(*model, dtype="float32")
