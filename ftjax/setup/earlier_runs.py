"""What earlier runs trained: the best parameters of a work folder, and adapters to be fused."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats.adapter import load_into
from ftjax.formats.folder import require_same
from ftjax.methods.fusion import alone, placed_as
from ftjax.parallel.agreement import first, raise_together, worst
from ftjax.parallel.mesh import placed_like
from ftjax.paths import Flat
from ftjax.remote import copied, located
from ftjax.tuned import Tuned
from ftjax.workdir.checksums import differing
from ftjax.workdir.folder import read_workdir
from ftjax.workdir.restore import Damaged, Saved, not_as_written
from ftjax.workdir.result import read_result


def best_params(
    workdir: Path, base: Path, like: Flat | None = None, step: int | None = None
) -> tuple[Flat, int]:
    """The trainable leaves of a work folder's best step, or of another, and its number.

    Args:
        workdir: of a run that has at least one checkpoint.
        base: folder of the base model.
        like: arrays, or their shapes, in whose shardings they come; None for the host's memory.
        step: that is asked for; None for the best.

    Raises:
        UserError: nothing was saved there, or not that step, or the base model has changed.
    """
    saved = Saved(workdir / "checkpoints")
    try:
        while True:
            # One choice for all hosts: a run may be saving here.
            steps, chosen, fingerprint = first(partial(_choice, saved, workdir, step))
            require_same(workdir, fingerprint, base)
            params, problem = None, None
            try:
                params, sums = saved.params(chosen, like), saved.sums(chosen)
            except Damaged as error:
                problem = _with_others(error, steps)
            if not worst(problem is not None):
                if not (paths := differing(sums, {"params": params})):
                    return params, chosen
                problem = _with_others(Damaged(not_as_written(saved, chosen, paths)), steps)
            if first(saved.steps) == steps:  # otherwise a run that goes on has deleted it
                raise_together(problem, f"checkpoint {chosen} of {workdir} cannot be read")
    finally:
        saved.close()


def _best_step(workdir: Path, meta: Mapping[str, Any]) -> int:
    """As the result has it, where there is one: not of a checkpoint that was damaged at the end."""
    if (workdir / "result.json").exists():
        return read_result(workdir)["best_step"]
    return meta["progress"]["best_step"]


def _with_others(error: Damaged, steps: Sequence[int]) -> Damaged:
    return Damaged(f"{error}; --step reads another, of {', '.join(map(str, steps))}")


def _choice(saved: Saved, workdir: Path, step: int | None) -> tuple[list[int], int, str]:
    """The steps that are there, the one to be read, and the fingerprint of its base model.

    Raises:
        UserError: there is none, or not the one that is asked for.
    """
    while steps := saved.steps():
        try:
            meta = saved.meta(steps[-1])
        except Damaged as error:
            if steps == saved.steps():  # otherwise a run that goes on has deleted it
                raise _with_others(error, steps) from error
            continue
        if step is not None and step not in steps:
            raise UserError(
                f"{workdir} has no checkpoint of step {step}, only of "
                f"{', '.join(map(str, steps))}: train.keep is how many of the newest stay, "
                "besides the best"
            )
        best = _best_step(workdir, meta)
        return steps, step if step is not None else steps[-1] if best < 0 else best, meta["base"]
    raise UserError(f"{workdir} has no checkpoint yet")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's work folder, in which something was trained."""
    return (folder / "config.json").exists() and (folder / "checkpoints").is_dir()


def adapted(config: ConfigDict, model: Tuned, params: Flat, base: Path) -> tuple[Flat, list[str]]:
    """Parameters with those of `model.adapter`, and the head's paths that it lacks.

    Args:
        config: whose adapter is a folder of PEFT or AdapterHub, or a work folder.
        model: under the adapter's method.
        params: its flat parameters.
        base: folder of the base model.

    Raises:
        UserError: it is of another method, base or pooling, or does not fit.
    """
    folder = copied(located(config.model.adapter))
    if not is_run(folder):
        return load_into(model, params, folder)
    earlier = read_workdir(folder)
    keys = [f"method.{key}" for key in {*earlier.method, *config.method}] + ["task.pooling"]
    for key in sorted(keys, key=lambda key: (key != "method.name", key)):
        section, name = key.split(".", 1)
        saved, now = (settings[section].get(name) for settings in (earlier, config))
        if saved != now:
            raise UserError(f"model.adapter: {folder} is of {key}={saved!r}, not {now!r}")
    adapter, new = best_params(folder, base)[0], config.model.new_head
    adapter = {p: x for p, x in adapter.items() if not (model.names.in_head(p) and new)}
    for path, array in adapter.items():
        if path not in params or array.shape != params[path].shape:
            raise UserError(
                f"model.adapter: {path!r} of {folder} does not fit the model; "
                "model.new_head=True starts a new head"
            )
    lacking = [path for path in model.shapes if model.names.in_head(path) and path not in adapter]
    placed = {path: placed_like(array, params[path]) for path, array in adapter.items()}
    return {**params, **placed}, lacking


def fused(
    hf_config: Mapping[str, Any],
    settings: Mapping[str, Any],
    head: Mapping[str, Any],
    method: Any,
    params: Flat,
    base: Path,
) -> Flat:
    """Parameters of an AdapterFusion with its trained adapters in place.

    Args:
        hf_config: config.json's mapping.
        settings: the `model` section of the configuration.
        head: the task's arguments to the family's `Model`.
        method: the fusion; its `adapters` are work folders, or folders of AdapterHub.
        params: flat parameters of the model under it.
        base: folder of the base model.

    Raises:
        UserError: a folder holds no adapter of these hyperparameters for this model.
    """
    options = {name: getattr(method, name) for name in methods.hyperparameters("pfeiffer")}
    model = build_tuned(hf_config, method.single, settings, head, jax.default_backend())
    result = dict(params)
    for number, folder in enumerate(copied(located(adapter)) for adapter in method.adapters):
        if is_run(folder):
            earlier = read_workdir(folder)
            saved = json.dumps(earlier.method.to_dict(), sort_keys=True)
            needed = json.dumps({"name": "pfeiffer", **options}, sort_keys=True)
            if saved != needed:
                raise UserError(f"method.adapters: {folder} is of {saved}, not {needed}")
            adapter = best_params(folder, base)[0]
        else:
            adapter, _ = load_into(model, alone(params, number), folder)
        for path, array in placed_as(adapter, number).items():
            if path not in params or array.shape != params[path].shape:
                raise UserError(f"method.adapters: {path!r} of {folder} does not fit the model")
            result[path] = placed_like(array, params[path])
    return result
