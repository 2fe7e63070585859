"""Models that are trained from scratch: made, with their tokenizer, where `model.path` is to be."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import jax
import numpy as np
from ml_collections import ConfigDict

from ftjax import methods, tasks
from ftjax.build import build_tuned
from ftjax.data.preparation.step import Models
from ftjax.data.sources import is_stream, open_parts
from ftjax.data.stream_source import START, Cursor, Source
from ftjax.errors import UserError, require
from ftjax.formats.hf import mapping, tokenizers
from ftjax.models import kind_of
from ftjax.parallel.agreement import require_same
from ftjax.process import transformers
from ftjax.remote import located
from ftjax.setup.splits import read_splits

READ = 200_000  # rows of a stream that a tokenizer is trained on


def make_model(config: ConfigDict, models: Models) -> None:
    """Makes the model that `model.new` describes, unless `model.path` is there already.

    `model.new` has the keys of its config.json, "model_type" among them, and "tokenizer" (see
    `ftjax.formats.hf.tokenizers.train`) and "vocab_size". The tokenizer is trained on the rows to
    train on, which `models` prepare; weights are drawn by `seed`. The folder is one as of Hugging
    Face.

    Raises:
        UserError: a key is missing or wrong, or several hosts would make the same folder.
    """
    description = config.model.new.to_dict()
    folder = located(config.model.path)
    there = (folder / "config.json").exists()
    if description:
        require_same(f"whether model.path={folder} is there", [there])
    if not description or there:
        return
    require(jax.process_count() == 1, f"model.path={folder} is not there: make it on one host")
    model_type, kind = description.pop("model_type", ""), description.pop("tokenizer", "")
    if not model_type or not kind:
        raise UserError("model.new needs model_type and tokenizer")
    task = tasks.create(config.task)
    # Of several runs that make the same model at once, the first wins, and clears away what the
    # others, or killed ones, have begun.
    partial = folder.with_name(f".{folder.name}.{uuid4().hex}.partial")
    partial.mkdir(parents=True)
    try:
        texts = _texts(config, task, models)
        _write(config, task, partial, model_type, kind, description, texts)
        partial.rename(folder)
    except Exception:
        if not (folder / "config.json").exists():
            raise
    finally:
        for begun in folder.parent.glob(f".{folder.name}*.partial"):
            if begun == partial or (folder / "config.json").exists():
                shutil.rmtree(begun, ignore_errors=True)


def _write(
    config: ConfigDict,
    task: Any,
    folder: Path,
    model_type: str,
    kind: str,
    description: dict[str, Any],
    texts: Iterator[str],
) -> None:
    """The model's folder, its tokenizer trained on texts."""
    tokenizer = tokenizers.train(kind, texts, description.pop("vocab_size", 8000), model_type)
    hf_config = _config(
        model_type, {**description, **tokenizers.save(tokenizer, folder, model_type)}
    )
    head = {"decoder": "causal_lm", "encoder-decoder": "seq2seq_lm"}.get(kind_of(hf_config))
    if head is None:
        head = task.head(("0", "1"), None).get("head")
        head = head if head in ("masked_lm", "pretraining") else None
    model = build_tuned(hf_config, methods.create({"name": "full"}), {}, {"head": head})
    shardings = dict.fromkeys(model.shapes)
    params = model.init(jax.random.key(config.seed), list(model.shapes), shardings)
    held = {path: np.asarray(leaf) for path, leaf in params.items()}
    tensors = mapping.to_tensors(held, model.names, prefix=head is not None)
    architecture = model.config.heads[head].architecture if head else model.names.model
    mapping.write_folder(folder, folder, {**hf_config, "architectures": [architecture]}, tensors)


def _config(model_type: str, values: dict[str, Any]) -> dict[str, Any]:
    """config.json's mapping with all defaults of its type."""
    try:
        return transformers().AutoConfig.for_model(model_type, **values).to_dict()
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model.new.model_type={model_type!r}: {reason}") from error


def _texts(config: ConfigDict, task: Any, models: Models) -> Iterator[str]:
    """All texts of the rows to train on."""
    if is_stream(config.data):
        rows = []
        for _, part in open_parts(config.data):
            source = Source(part["train"], task.schema, skip=True)
            rows += Cursor(source).take(START, READ)[0]
    else:
        splits, _ = read_splits(config, task, models)
        require("train" in splits, f"data.path={config.data.path!r} has no training split")
        rows = splits["train"].rows
    for row in rows:
        yield from _strings({name: row[name] for name in row if name not in ("id", "label")})


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
