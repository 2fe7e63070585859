"""From a configuration to everything a run needs: data, model, parameters, mesh."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ftjax import methods, pretrained, tasks, tuned
from ftjax.config import flat_keys, from_json, to_json
from ftjax.errors import UserError, nearest, require
from ftjax.formats.adapter import load_into
from ftjax.formats.folder import locate, read_config
from ftjax.formats.jsons import read_json
from ftjax.formats.vocabulary import with_words
from ftjax.methods.fusion import AdapterFusion
from ftjax.methods.prompting import HEADS, Prompting
from ftjax.models import kind_of
from ftjax.parallel.mesh import AXES, batch_ways, make_mesh
from ftjax.paths import Flat
from ftjax.remote import copied, located
from ftjax.training import lock
from ftjax.training.records import write_json, write_text
from ftjax.training.trained import fused

# What may differ when a run is resumed: it changes speed and records, not results.
FREE = (
    "mesh.",
    "model.remat",
    "model.attention",
    "train.log_every",
    "train.keep",
    "train.eval_batch_size",
    "train.skip_limit",
    "train.profile_steps",
    "train.dump_programs",
)
# Where something lies: what is there is compared by content, see `ftjax.training.inputs`.
PATHS = ("data.path", "data.mixture", "model.path", "model.adapter", "method.adapters")
START = "start"  # of a work folder: the model of `model.from_run`
LENGTHS = ("train.epochs", "train.steps")  # which `--extend` may raise
PENDING = "pending"  # of a result: what is still to come of it
MEND = 'its text is also in checkpoints/STEP/meta/metadata, under "config"'


@dataclass(frozen=True)
class Run:
    """A configured model in place.

    Attributes:
        absent: parameters of the head that the folder lacks and that were initialized.
    """

    config: ConfigDict
    folder: Path
    task: Any
    tuned: tuned.Tuned
    mesh: Mesh
    trainable: Flat
    frozen: Flat
    absent: list[str]

    def outputs(self, params: Flat, batch: Mapping[str, jax.Array]) -> jax.Array:
        """What the task is scored by, of each example of a batch."""
        return self.task.outputs(partial(self.tuned.apply, params), batch)

    def reference(self, params: Flat, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The same of the model before training: without its method, or with a loaded adapter."""
        adapted = bool(self.config.model.adapter)
        return self.task.outputs(partial(self.tuned.apply, params, adapted=adapted), batch)


def best_metric(config: ConfigDict, task: Any, found: Mapping[str, Any] | None = None) -> str:
    """The validation metric that chooses: `train.best_metric`, or the task's.

    Raises:
        UserError: the task has no such metric, or it is not a number among those `found`.
    """
    name = config.train.best_metric
    name = task.best_metric if name == "auto" else name
    known = {key for key in task.better if key not in task.at_end}
    if found is not None:
        known &= {key for key, value in found.items() if isinstance(value, float)}
    if name not in known:
        raise UserError(
            f"train.best_metric={name!r} is not a metric that {config.task.name} validates by"
            f"{nearest(name, known)}"
        )
    return name


def prompt_kind(method: Prompting, folder: Path, hf_config: Mapping[str, Any]) -> str:
    """Which kind of prompts a model takes: `method.kind`, or by what the folder says it is."""
    if method.kind != "auto":
        return method.kind
    if kind_of(hf_config) == "decoder":
        return "causal"
    ends = ("ForMaskedLM", "ForPreTraining")
    masked = any(name.endswith(ends) for name in hf_config.get("architectures") or ())
    return "masked" if masked and not (folder / "1_Pooling").exists() else "sentence"


def place_model(config: ConfigDict, names: tuple[str, ...]) -> Run:
    """The model under its method, with its parameters on the mesh."""
    folder = locate(config.model.path)
    task = tasks.create(config.task)
    mesh = make_mesh(**{axis: config.mesh[axis] for axis in AXES})
    for key in ("batch_size", "eval_batch_size"):
        rows = config.train[key] // (config.train.accumulation if key == "batch_size" else 1)
        ways = batch_ways(mesh)
        if rows % ways:
            raise UserError(
                f"train.{key}={config.train[key]} (a microbatch of {rows} rows) does not divide "
                f"over mesh.data × mesh.fsdp × mesh.expert = {ways}"
            )
    method = methods.create(config.method)
    if not method.trains and config.task.name != "classification":
        raise UserError(f"method.name={config.method.name} is for task.name=classification")
    resize = config.model.resize_vocabulary
    head, hf_config = task.head(names, folder), with_words(folder, read_config(folder), resize)
    if not method.trains:
        head["head"] = HEADS[prompt_kind(method, folder, hf_config)]
    model = tuned.build(hf_config, method, config.model, head, jax.default_backend())
    model.check_length(config.data.max_length)
    if config.data.batching == "pack":
        two_sided = kind_of(hf_config) == "encoder-decoder"
        require(not two_sided, "data.batching=pack is not for encoder-decoders; use bucket")
        name = config.task.name
        require(task.packs, f"data.batching=pack is not for task.name={name}; use bucket")
    key = jax.random.key(config.seed)
    params, absent = pretrained.load(
        folder, model, mesh, key, config.mesh.replicate, config.model.new_head, resize
    )
    if absent and not method.trains:
        raise UserError(
            f"{folder} has no head of a language model that prompts could be scored by: it lacks "
            f"{absent[0]!r}; method.kind='sentence' needs none"
        )
    if config.model.adapter:
        params, lacking = load_into(model, params, copied(located(config.model.adapter)))
        absent = [path for path in absent if path in lacking]
    if isinstance(method, AdapterFusion) and method.adapters:
        params = fused(hf_config, config.model, head, method, params, folder)
    trainable, frozen = model.partition.split(params)
    return Run(config, folder, task, model, mesh, trainable, frozen, absent)


def with_bias(run: Run, values: Sequence[float] | None) -> Run:
    """The run with values (outputs,) in the bias of its head, where that is new and has one."""
    path = "classifier/bias"
    if values is None or path not in run.absent or path not in run.trainable:
        return run
    old = run.trainable[path]
    new = jax.device_put(np.asarray(values, old.dtype), old.sharding)
    return replace(run, trainable={**run.trainable, path: new})


def check_workdir(workdir: Path, config: ConfigDict, extend: bool = False) -> None:
    """Checks that a work folder is of this configuration, or new.

    Args:
        workdir: the work folder.
        config: of the run.
        extend: whether the run may be longer than the folder says.

    Raises:
        UserError: the folder belongs to another configuration; the differences are named.
    """
    path = workdir / "config.json"
    # Listed before config.json is looked for: another host may be writing it, and files after it
    there = workdir.iterdir() if workdir.exists() else ()
    own = (lock.NAME, *(f".{name}." for name in (lock.NAME, START, path.name)))
    names = [file.name for file in there]
    others = [name for name in names if name != START and not name.startswith(own)]
    if path.exists():
        refuse_differences(str(workdir), read_workdir(workdir), config, extend)
    elif others:
        raise UserError(f"--workdir {workdir} holds other files and no config.json")


def open_workdir(workdir: Path, config: ConfigDict, extend: bool = False) -> None:
    """Makes a work folder, or checks that it is of this configuration: see `check_workdir`."""
    check_workdir(workdir, config, extend)
    path = workdir / "config.json"
    if not path.exists():
        write_text(path, to_json(config))


def finished(workdir: Path, config: ConfigDict, extend: bool = False) -> dict[str, Any] | None:
    """The result of a run that is finished; None where something is left to do, or to compare.

    Args:
        workdir: the work folder, also one that is not there.
        config: of the run.
        extend: whether the run may be longer than the folder says.

    Raises:
        UserError: the folder belongs to another configuration; the differences are named.
    """
    path = workdir / "result.json"
    if not path.exists():
        return None
    saved = read_workdir(workdir)
    refuse_differences(str(workdir), saved, config, extend)
    old, new = flat_keys(saved), flat_keys(config)
    if config.model.from_run:  # its model is in the work folder
        new["model.path"] = old["model.path"]
    changed = [key for key in (*LENGTHS, *PATHS) if _text(old.get(key)) != _text(new.get(key))]
    if changed and (workdir / "checkpoints").exists():
        return None
    require(not changed, f"{workdir} is finished; {changed} differ from its configuration")
    result = _read(path, "remove it, and the same command writes it anew")
    return None if result.get(PENDING) else result


def _read(path: Path, mend: str) -> dict[str, Any]:
    """A file of a work folder; `mend` is what to do where it is damaged."""
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(f"{error}; {mend}") from error


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=dict)


def refuse_differences(
    where: str, saved: ConfigDict, config: ConfigDict, extend: bool = False
) -> None:
    """Raises UserError where two configurations differ in what changes results.

    Args:
        where: the folder of the first.
        saved: its configuration.
        config: the other.
        extend: whether the length of the run may differ.
    """
    old, new = flat_keys(saved), flat_keys(config)
    different = [
        key
        for key in sorted({*old, *new})
        if not key.startswith(FREE) and unplaced(key, old.get(key)) != unplaced(key, new.get(key))
    ]
    if extend:
        different = [key for key in different if key not in LENGTHS]
    if not different:
        return
    each = [f"{key}: {old.get(key)!r} there, {new.get(key)!r} now" for key in different]
    mend = "use another --workdir, or the same configuration"
    if set(different) <= set(LENGTHS):
        mend = f"--extend goes on from its last checkpoint to a later end; otherwise {mend}"
    raise UserError(f"{where} holds a run of another configuration ({'; '.join(each)}); {mend}")


def length_before(workdir: Path, meta: Mapping[str, Any], total: int) -> int:
    """The steps that a run was to have when a checkpoint of it was written.

    Args:
        workdir: of the run.
        meta: what was saved with the checkpoint.
        total: the steps that it is to have now.

    Raises:
        UserError: they were more.
    """
    before = meta.get("total", total)
    if total < before:
        raise UserError(
            f"{workdir} holds a run of {before:,} steps, and {total:,} are fewer: raise "
            "train.epochs or train.steps"
        )
    return before


def unplaced(key: str, value: Any) -> str:
    """A key's value as it is compared: without where something lies."""
    if key == "data.mixture":
        value = [{name: x for name, x in part.items() if name != "path"} for part in value or ()]
    elif key in PATHS:
        value = len(value) if isinstance(value, tuple | list) else bool(value)
    return _text(value)


def read_workdir(workdir: Path) -> ConfigDict:
    """The resolved configuration of a work folder.

    Raises:
        UserError: it is not a work folder.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"--workdir {workdir} has no config.json: no run was started there")
    saved = _read(path, MEND)
    if not {"method", "task"} <= saved.keys():
        raise UserError(f"--workdir {workdir}: its config.json is that of a model, not of a run")
    config = from_json(json.dumps(saved))
    if config.model.from_run:  # wherever the folder lies now
        config.model.path = str(workdir / START)
    return config


def write_labels(workdir: Path, names: tuple[str, ...]) -> None:
    write_json(workdir / "labels.json", list(names))


def read_labels(workdir: Path) -> tuple[str, ...]:
    path = workdir / "labels.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: the run has not started training")
    try:
        return tuple(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON: {error}; inputs.json beside it has the labels in order"
        ) from error
