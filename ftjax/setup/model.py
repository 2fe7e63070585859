"""From a configuration to everything a run needs: data, model, parameters, mesh."""

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
from ftjax.build import build_tuned
from ftjax.data.sources import Split
from ftjax.errors import UserError, nearest, require
from ftjax.formats.folder import locate
from ftjax.formats.hf.vocabulary import with_words
from ftjax.methods.fusion import AdapterFusion
from ftjax.methods.prompting import HEADS, Prompting
from ftjax.models import kind_of, read_config
from ftjax.parallel.mesh import batch_ways, configured_mesh
from ftjax.paths import Flat
from ftjax.setup.earlier_runs import adapted, fused
from ftjax.setup.labels import pooling_folder
from ftjax.tasks.base import Task
from ftjax.tasks.written import Written


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


def best_metric(config: ConfigDict, task: Task) -> str:
    """The validation metric that chooses: `train.best_metric`, or the task's.

    Raises:
        UserError: the task has no such metric.
    """
    name = config.train.best_metric
    name = task.best_metric if name == "auto" else name
    written = set(task.measured_written) if isinstance(task, Written) else set()
    known = task.better.keys() - {*task.at_end} | written
    if name not in known:
        mend = "; set task.generate" if name in task.at_end and not written else ""
        raise UserError(
            f"train.best_metric={name!r} is not a metric that {config.task.name} validates by"
            f"{mend or nearest(name, known)}"
        )
    return name


def require_measured(metric: str, task: Task, split: Split, names: Sequence[str]) -> None:
    """Raises UserError where a validation split is such that a metric cannot be computed of it."""
    measured = set(task.measured(split, names))
    if metric in measured or (metric in task.at_end and any(task.references(split))):
        return
    raise UserError(
        f"train.best_metric={metric!r} cannot be computed of {split.file}, which gives "
        f"{', '.join(sorted(measured))}"
    )


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
    mesh = configured_mesh(config.mesh)
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
    head = task.head(names, pooling_folder(config, folder))
    hf_config = with_words(folder, read_config(folder), resize)
    if not method.trains:
        head["head"] = HEADS[prompt_kind(method, folder, hf_config)]
    model = build_tuned(hf_config, method, config.model, head, jax.default_backend())
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
        params, lacking = adapted(config, model, params, folder)
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
