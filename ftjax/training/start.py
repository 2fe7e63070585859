"""Runs that begin with what another run trained: `model.from_run`, and `model.from_step`."""

import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

import jax
from ml_collections import ConfigDict

from ftjax.errors import UserError, require
from ftjax.formats import folder as folders
from ftjax.formats import hf
from ftjax.formats.folder import fingerprint, locate, open_weights, require_same
from ftjax.formats.plain import Plain
from ftjax.formats.sentences import labels_of
from ftjax.formats.tokenizer_files import copy_files
from ftjax.formats.vocabulary import sized
from ftjax.remote import is_remote, located
from ftjax.training.predictor import Predictor, open_predictor
from ftjax.training.reading import read_config
from ftjax.training.run import START

BESIDE = ("1_Pooling/config.json", "generation_config.json")


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
    if not (start / "config.json").exists() or not (workdir / "config.json").exists():
        several = "model.from_run: begin on one host; on several the same command then goes on"
        require(jax.process_count() == 1, several)
        require(not is_remote(workdir), f"model.from_run: {workdir} must be of this machine")
        shutil.rmtree(start, ignore_errors=True)  # of a run that did not come to train
        partial = start.with_name(f".{START}.{uuid4().hex}")
        try:
            _write(partial, config)
            partial.rename(start)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    config.model.path = str(start)


def _write(folder: Path, config: ConfigDict) -> None:
    where = located(config.model.from_run)
    try:
        earlier = open_predictor(where, read_config(where), config.model.from_step or None)
        base = earlier.run.folder
        require_same(where, fingerprint(base), locate(config.model.path))
        tuned, names = earlier.run.tuned, earlier.run.task.output_names(earlier.names)
        found = sized(folders.read_config(base), tuned.config.vocab_size) | {"dtype": "float32"}
        for stored in ("torch_dtype", "quantization_config"):  # of what is written no more
            found.pop(stored, None)
        head = tuned.config.heads.get(tuned.model.head)
        found["architectures"] = [head.architecture if head else tuned.family.MODEL]
        if problem := earlier.run.task.problem_type:
            found |= {**labels_of(names), "problem_type": problem}
        hf.write_folder(folder, base, found, _tensors(earlier))
    except UserError as error:
        raise UserError(f"model.from_run={config.model.from_run!r}: {error}") from error
    copy_files(base, folder, BESIDE)


def _tensors(earlier: Predictor) -> dict[str, Any]:
    """The merged model by Hugging Face's names, with parts of its base that it left out."""
    tuned, base = earlier.run.tuned, open_weights(earlier.run.folder)
    tensors = Plain(tuned, earlier.params, base).tensors(tuned.base.shapes, prefix=True)
    own, usual = tuned.names.prefix, tuned.family.HF_PREFIX
    for name in base:
        bare = name.removeprefix(f"{usual}.")
        ours = f"{own}.{bare}" if own else bare
        if bare.rsplit(".", 1)[0] in tuned.base.names.values() and ours not in tensors:
            tensors[ours] = base[name]
    return tensors
