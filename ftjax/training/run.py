"""From a configuration to everything a run needs: data, model, parameters, mesh."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ftjax import methods, tasks, tuned
from ftjax.config import flat_keys, from_json, to_json
from ftjax.data.encode import Examples, encode, encoder
from ftjax.data.planning import Layout, bucket_layout, packed_layout
from ftjax.data.preparation import steps
from ftjax.data.preparation.pipeline import Report, prepare
from ftjax.data.sources import Split, is_stream, load, open_parts
from ftjax.data.streaming import Source, Windows
from ftjax.errors import UserError, nearest
from ftjax.formats.adapter import load_into
from ftjax.formats.folder import locate, read_config
from ftjax.methods.fusion import AdapterFusion
from ftjax.methods.prompting import HEADS, Prompting
from ftjax.models import kind_of
from ftjax.parallel.mesh import AXES, batch_ways, make_mesh
from ftjax.paths import Flat
from ftjax.remote import copied, located
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


@dataclass(frozen=True)
class Data:
    """Encoded splits.

    Attributes:
        splits: name → examples, with labels.
        names: of the labels.
        report: rows in and out of every preparation step, and truncated texts.
        stream: rows to train on, where they are read while training.
    """

    splits: dict[str, Examples]
    names: tuple[str, ...]
    report: Report
    stream: Windows | None = None


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


def read_splits(config: ConfigDict, label: str | None) -> tuple[dict[str, Split], Report]:
    """Prepared splits of the configured source."""
    from ftjax.training import preparation  # whose models are placed as those here are

    return prepare(load(config.data, label), config.data, preparation)


def encode_split(config: ConfigDict, task: Any, split: Split, names: Any, folder: Path) -> Examples:
    """A split's tokens and, where it has labels, its targets."""
    return with_targets(encode(split, folder, config.data.max_length), task, split, names)


def with_targets(examples: Examples, task: Any, split: Split, names: Any) -> Examples:
    """The examples of a split with its targets, where it has labels."""
    if "label" not in split.rows.column_names:
        return examples
    return replace(examples, arrays={**examples.arrays, "labels": task.targets(split, names)})


def choose_layout(config: ConfigDict, mesh: Mesh, lengths: np.ndarray, batch_size: int) -> Layout:
    """The shapes of batches for examples of these lengths, by `data.batching`."""
    if config.data.batching == "pack":
        multiple = batch_ways(mesh) * config.train.accumulation
        return packed_layout(lengths, batch_size, multiple, config.data.buckets)
    if config.data.batching == "bucket":
        return bucket_layout(lengths, config.data.buckets)
    return Layout((config.data.max_length,))


def best_metric(config: ConfigDict, task: Any, found: Mapping[str, Any] | None = None) -> str:
    """The validation metric that chooses: `train.best_metric`, or the task's.

    Raises:
        UserError: it is not a number among the metrics `found`.
    """
    name = config.train.best_metric
    name = task.best_metric if name == "auto" else name
    if found is not None and not isinstance(found.get(name), float):
        numbers = [key for key, value in found.items() if isinstance(value, float)]
        raise UserError(
            f"train.best_metric={name!r} is not a metric of "
            f"{config.task.name}{nearest(name, numbers)}"
        )
    return name


def read_labelled(
    config: ConfigDict, task: Any
) -> tuple[dict[str, Split], tuple[str, ...], Report]:
    """Prepared splits with one to train on, the labels' names, and what the steps dropped.

    The labels of a stream are those of the validation split.
    """
    raw, report = read_splits(config, task.label)
    stream = is_stream(config.data)
    if not stream and "train" not in raw:
        raise UserError(f"data.path={config.data.path!r} has no training split")
    if stream and task.label and "validation" not in raw:
        raise UserError("the labels of a stream are those of a validation split; there is none")
    return raw, task.label_names(raw.get("validation" if stream else "train")), report


def read_data(config: ConfigDict, task: Any, folder: Path) -> Data:
    """Reads, checks, prepares and encodes all splits."""
    raw, names, report = read_labelled(config, task)
    splits = {name: encode_split(config, task, raw[name], names, folder) for name in raw}
    for name, examples in splits.items():
        counts = {"rows_in": len(examples), "rows_out": len(examples)}
        report.append({"step": "truncate", "split": name, **counts, "cut": examples.truncated})
    stream = open_stream(config, task, names, folder) if is_stream(config.data) else None
    return Data(splits, names, report, stream)


def open_stream(config: ConfigDict, task: Any, names: tuple[str, ...], folder: Path) -> Windows:
    """The rows to train on, read while training."""
    settings, sources = config.data, []
    for weight, part in open_parts(settings):
        if "train" not in part:
            raise UserError(f"{next(iter(part.values())).file}: there is no training split")
        skip = settings.on_error == "skip"
        sources.append(Source(part["train"], weight, task.label, skip, steps(settings.prepare)))

    encoded = encoder(folder, settings.max_length)

    def targeted(split: Split) -> Examples:
        return with_targets(encoded(split), task, split, names)

    return Windows(sources, settings.window, targeted)


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
    head, hf_config = task.head(names, folder), read_config(folder)
    if not method.trains:
        head["head"] = HEADS[prompt_kind(method, folder, hf_config)]
    model = tuned.build(hf_config, method, config.model, head, jax.default_backend())
    model.check_length(config.data.max_length)
    if config.data.batching == "pack" and kind_of(hf_config) == "encoder-decoder":
        raise UserError("data.batching=pack is not for encoder-decoders; use bucket")
    key = jax.random.key(config.seed)
    params, absent = tuned.load(
        folder, model, mesh, key, config.mesh.replicate, config.model.new_head
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


def open_workdir(workdir: Path, config: ConfigDict) -> None:
    """Makes a work folder, or checks that it is of this configuration.

    Raises:
        UserError: the folder belongs to another configuration; the differences are named.
    """
    path = workdir / "config.json"
    if path.exists():
        refuse_differences(str(workdir), from_json(path.read_text(encoding="utf-8")), config)
    elif workdir.exists() and any(workdir.iterdir()):
        raise UserError(f"--workdir {workdir} holds other files and no config.json")
    else:
        write_text(path, to_json(config))


def refuse_differences(where: str, saved: ConfigDict, config: ConfigDict) -> None:
    """Raises UserError where two configurations differ in what changes results."""
    old, new = flat_keys(saved), flat_keys(config)

    def differs(key: str) -> bool:
        there, now = (json.dumps(keys.get(key), sort_keys=True) for keys in (old, new))
        return there != now and not key.startswith(FREE)

    differences = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted({*old, *new})
        if differs(key)
    ]
    if differences:
        raise UserError(
            f"{where} holds a run of another configuration ({'; '.join(differences)}); "
            "use another --workdir, or the same configuration"
        )


def read_workdir(workdir: Path) -> ConfigDict:
    """The resolved configuration of a work folder.

    Raises:
        UserError: it is not a work folder.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"--workdir {workdir} has no config.json: no run was started there")
    return from_json(path.read_text(encoding="utf-8"))


def write_labels(workdir: Path, names: tuple[str, ...]) -> None:
    write_json(workdir / "labels.json", list(names))


def read_labels(workdir: Path) -> tuple[str, ...]:
    path = workdir / "labels.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: the run has not started training")
    return tuple(json.loads(path.read_text(encoding="utf-8")))
