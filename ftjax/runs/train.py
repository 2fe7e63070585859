"""A configuration trained in a work folder, from reading it to its result."""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ftjax import tasks
from ftjax.config import check, require_config
from ftjax.data.in_memory import as_texts, require_same_rows, write_splits
from ftjax.errors import require
from ftjax.evaluation import preparation_models
from ftjax.evaluation.written_answers import check_written, is_written
from ftjax.forecast.layouts import with_known_layout
from ftjax.formats.folder import locate
from ftjax.parallel.agreement import first
from ftjax.remote import located, path_text
from ftjax.runs.predictions import write_drawn
from ftjax.runs.session import train_session
from ftjax.runs.start import begin
from ftjax.runs.zero_shot import choose_template
from ftjax.setup.inputs import inputs_of, require_same_inputs
from ftjax.setup.model import best_metric, place_model, require_measured
from ftjax.setup.new_model import make_model
from ftjax.setup.splits import read_data
from ftjax.training.signals import hearing
from ftjax.workdir.folder import ROWS, begun, check_workdir, finished, open_workdir, write_labels
from ftjax.workdir.lock import Lock
from ftjax.workdir.records import write_data_report
from ftjax.workdir.result import Result
from ftjax.workdir.shared import require_same_config, require_shared_folder


def train(
    config: ConfigDict, workdir: str | os.PathLike[str], data: Any = None, *, extend: bool = False
) -> Result:
    """Trains, or goes on where an earlier run in `workdir` stopped.

    Args:
        config: of the run.
        workdir: the work folder, made if absent.
        data: rows in place of `data.path`'s: a mapping from "train" (and "validation", "test") to
            mappings, a pandas.DataFrame or a datasets.Dataset, which the work folder keeps; or a
            file or folder.
        extend: go on with a run although `train.epochs` or `train.steps` are more than it was
            begun with, also where it has finished. All that is a share of the run, and the learning
            rate's schedule, are then those of the new length, from where the run goes on: a linear
            schedule that had come to 0 rises to where it would be at that step of the longer run.
            Early stopping counts anew; the best so far stays the best until there is a better one.

    Returns:
        The result that result.json holds.

    Raises:
        Stopped: SIGTERM or Ctrl-C stopped the run, after saving.
        UserError: bad input, a work folder of another configuration or that another process
            trains in, or a loss that is not finite.
    """
    require_config(config)
    require(workdir != "", "workdir is empty: name a folder for the run")
    config, workdir = config.copy_and_resolve_references(), located(workdir)
    require(not workdir.is_file(), f"--workdir {workdir} is a file, not a folder")
    is_path = isinstance(data, str | os.PathLike)
    rows = None if data is None or is_path else as_texts(data)
    if data is not None:
        config.data.path = path_text(data) if is_path else str(workdir / ROWS)
    check(config)
    if rows is not None and begun(workdir):
        first(partial(require_same_rows, workdir / ROWS, rows))
    result = first(partial(finished, workdir, config, extend))
    if result is not None:
        print(f"{workdir} is finished already")
        return Result(result, workdir)
    if config.method.name == "prompting":
        first(partial(_keep, rows, workdir))
        return Result(choose_template(config, workdir), workdir)
    require_same_config(config)
    make_model(config, preparation_models)
    task = tasks.create(config.task)
    metric = best_metric(config, task)
    with hearing(), Lock(workdir) as lock:
        require_shared_folder(workdir)
        first(partial(check_workdir, workdir, config, extend))
        first(partial(_keep, rows, workdir))
        begin(config, workdir)
        folder = locate(config.model.path)
        data = read_data(config, task, folder, preparation_models)
        if "validation" in data.raw:
            require_measured(metric, task, data.raw["validation"], data.names)
        first(partial(open_workdir, workdir, config, extend))
        inputs = inputs_of(config, data, folder)
        require_same_inputs(workdir, inputs)
        run = place_model(_laid_out(config), data.names)
        if is_written(run):
            chooses = {"validation"} if metric in task.at_end else set()
            for name in sorted(chooses | {data.written} - {None}):
                data.report.append(check_written(run, data.raw[name]) | {"split": name})
        first(partial(write_labels, workdir, data.names))
        first(partial(write_data_report, workdir, data.report))
        first(partial(write_drawn, workdir, data))
        try:
            result = train_session(run, data, workdir, lock, inputs["base model"])
            return Result(result, workdir)
        finally:
            if data.stream is not None:
                data.stream.close()


def _laid_out(config: ConfigDict) -> ConfigDict:
    """In the layout that the table has, where that is asked for; what it is, and why, is said."""
    if config.model.layout != "auto":
        return config
    config, reason = with_known_layout(config)
    if jax.process_index() == 0:
        print(f"model.layout=auto: {reason}", flush=True)
    return config


def _keep(rows: Mapping[str, str] | None, workdir: Path) -> None:
    """Keeps the rows of a program in the work folder, so that the run can be gone on with; where
    nothing was trained, in place of those of a call that failed."""
    if rows is not None:
        (require_same_rows if begun(workdir) else write_splits)(workdir / ROWS, rows)
