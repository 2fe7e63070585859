"""A work folder's model in another format."""

import os
from pathlib import Path
from typing import Any

from ftjax.config import in_dots
from ftjax.errors import require
from ftjax.evaluation.predictor import open_predictor
from ftjax.formats.export import write_export
from ftjax.formats.folder import hub_name
from ftjax.formats.hf.shards import SHARD_BYTES
from ftjax.remote import located, path_text
from ftjax.workdir.configuration import read_config


def export(
    workdir: str | os.PathLike[str],
    kind: str,
    output: str | os.PathLike[str],
    *,
    step: int | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    **keys: Any,
) -> tuple[int, str]:
    """Writes the best model of a work folder, or that of another step.

    Args:
        workdir: of a run that has at least one checkpoint.
        kind: "hf", "peft" or "adapterhub".
        output: a new folder.
        step: of the checkpoint; None for the best.
        dtype: of a merged model's numbers; None: the base's.
        shard_bytes: largest size of a file of a merged model.
        **keys: dotted names of what readers may change.

    Returns:
        The step, and what its user has to know of the folder.

    Raises:
        UserError: it is no such folder, or the format does not hold such a model.
    """
    workdir, output = located(workdir), Path(path_text(output))
    whole = isinstance(shard_bytes, int) and shard_bytes > 0
    require(whole, f"shard_bytes={shard_bytes!r} must be a number of bytes above 0")
    predictor = open_predictor(workdir, read_config(workdir, in_dots(keys)), step)
    run = predictor.run
    note = write_export(
        kind,
        output,
        run.folder,
        run.tuned,
        predictor.params,
        run.task.output_names(predictor.names),
        run.task.problem_type,
        base=hub_name(run.config.model.path, run.folder),
        dtype=dtype,
        shard_bytes=shard_bytes,
    )
    return predictor.step, note
