"""A work folder's model in another format."""

from collections.abc import Sequence
from pathlib import Path

from ftjax.evaluation.predictor import open_predictor
from ftjax.formats.export import write_export
from ftjax.formats.folder import hub_name
from ftjax.formats.hf.shards import SHARD_BYTES
from ftjax.workdir.configuration import read_config


def export(
    workdir: Path,
    kind: str,
    output: Path,
    overrides: Sequence[str] = (),
    step: int | None = None,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> tuple[int, str]:
    """Writes the best model of a work folder, or that of another step.

    Args:
        workdir: of a run that has at least one checkpoint.
        kind: "hf", "peft" or "adapterhub".
        output: a new folder.
        overrides: "--config.KEY=VALUE" of what readers may change.
        step: of the checkpoint; None for the best.
        dtype: of a merged model's numbers; None: the base's.
        shard_bytes: largest size of a file of a merged model.

    Returns:
        The step, and what its user has to know of the folder.

    Raises:
        UserError: it is no such folder, or the format does not hold such a model.
    """
    predictor = open_predictor(workdir, read_config(workdir, overrides), step)
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
