"""Runs of methods that train nothing: templates are chosen on validation, tested once."""

import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from ml_collections import ConfigDict

from ftjax import methods, tasks
from ftjax.data.encode import encode
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.formats.folder import locate
from ftjax.methods.prompting import similarity_logits
from ftjax.training.evaluate import Forward, score
from ftjax.training.memory import peak_memory_bytes
from ftjax.training.records import write_json
from ftjax.training.run import Run, open_workdir, place_model, read_data, write_labels


def embed_labels(run: Run, forward: Forward, template: str, names: tuple[str, ...]) -> np.ndarray:
    """Embeddings of a template filled with each label: (labels, features)."""
    texts = methods.create(run.config.method).fill(template, names)
    rows = datasets.Dataset.from_dict({"text": texts, "row": list(range(len(texts)))})
    examples = encode(Split("templates", rows), run.folder, run.config.data.max_length)
    return forward(run.trainable, run.frozen, examples)


def choose_template(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Chooses the template by the validation metric, and tests it once.

    Returns:
        The result that result.json holds.
    """
    folder, task = locate(config.model.path), tasks.create(config.task)
    data = read_data(config, task, folder)
    if "validation" not in data.splits:
        raise UserError("prompting chooses its template on validation: set data.splits.validation")
    open_workdir(workdir, config)
    write_labels(workdir, data.names)
    write_json(workdir / "data_report.json", data.report)
    run = place_model(config, data.names)
    buckets = (*data.buckets, config.data.max_length)
    forward = Forward(run.tuned, run.mesh, config.train.eval_batch_size, buckets)
    metric = task.best_metric if config.train.best_metric == "auto" else config.train.best_metric

    start, validation = time.perf_counter(), data.splits["validation"]
    texts = forward(run.trainable, run.frozen, validation)
    tried = {}
    for template in methods.create(config.method).templates:
        labels = embed_labels(run, forward, template, data.names)
        found = score(task, similarity_logits(texts, labels), validation, data.names)
        tried[template] = (found, labels)
    template = max(tried, key=lambda name: tried[name][0][metric])
    seconds = time.perf_counter() - start - forward.compile_seconds
    found, labels = tried[template]

    scores = {"validation": found}
    if "test" in data.splits:
        test = data.splits["test"]
        texts = forward(run.trainable, run.frozen, test)
        scores["test"] = score(task, similarity_logits(texts, labels), test, data.names)
    _, total = run.tuned.partition.counts(run.tuned.shapes)
    result = {
        "method": config.method.name,
        "model": config.model.path,
        "task": config.task.name,
        "data": f"{config.data.source}:{config.data.path}",
        "seed": config.seed,
        "steps": 0,
        "epochs": 0,
        "trainable_params": 0,
        "total_params": total,
        "train_seconds": round(seconds, 3),
        "compile_seconds": round(forward.compile_seconds, 3),
        "examples_per_second": round(len(validation) / seconds, 2),
        "tokens_per_second": round(int(validation.lengths.sum()) / seconds, 2),
        "peak_memory_bytes": peak_memory_bytes(),
        "best_step": 0,
        "template": template,
        "templates": {name: tried[name][0][metric] for name in tried},
        "metrics": scores,
    }
    write_json(workdir / "result.json", result)
    return result
