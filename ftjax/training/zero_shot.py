"""Runs of methods that train nothing: templates are chosen on validation, tested once."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from ml_collections import ConfigDict

from ftjax import methods, tasks
from ftjax.data.encode import encode
from ftjax.data.planning import bucket_layout
from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.formats.folder import locate
from ftjax.methods.prompting import similarity_logits
from ftjax.training.evaluate import Forward, score
from ftjax.training.progress import Progress
from ftjax.training.records import write_json
from ftjax.training.result import write_result
from ftjax.training.run import (
    Run,
    best_metric,
    choose_layout,
    open_workdir,
    place_model,
    read_data,
    write_labels,
)


def embed_labels(
    run: Run, forward: Forward, templates: Sequence[str], names: tuple[str, ...]
) -> np.ndarray:
    """Embeddings of templates filled with each label: (templates, labels, features)."""
    method = methods.create(run.config.method)
    texts = [text for template in templates for text in method.fill(template, names)]
    rows = datasets.Dataset.from_dict({"text": texts, "row": list(range(len(texts)))})
    examples = encode(Split("templates", rows), run.folder, run.config.data.max_length)
    found = forward(run.trainable, run.frozen, examples, bucket_layout(examples.lengths, 1))
    return found.reshape(len(templates), len(names), -1)


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
    batch_size, validation = config.train.eval_batch_size, data.splits["validation"]
    lengths = np.concatenate([examples.lengths for examples in data.splits.values()])
    layout = choose_layout(config, run.mesh, lengths, batch_size)
    forward = Forward(run.tuned, run.mesh, batch_size)
    metric = best_metric(config, task)

    start = time.perf_counter()
    texts = forward(run.trainable, run.frozen, validation, layout)
    templates, tried = methods.create(config.method).templates, {}
    embedded = embed_labels(run, forward, templates, data.names)
    for template, labels in zip(templates, embedded, strict=True):
        found = score(task, similarity_logits(texts, labels), validation, data.names)
        best_metric(config, task, found)
        tried[template] = (found, labels)
    sign = -1 if metric == "loss" else 1
    template = max(tried, key=lambda name: sign * tried[name][0][metric])
    found, labels = tried[template]
    progress = Progress(
        best=found[metric],
        best_step=0,
        validation=found,
        seconds=time.perf_counter() - start - forward.compile_seconds,
        tokens=int(validation.lengths.sum()),
        examples=len(validation),
    )
    scores = None
    if "test" in data.splits:
        test = data.splits["test"]
        texts = forward(run.trainable, run.frozen, test, layout)
        scores = score(task, similarity_logits(texts, labels), test, data.names)
    progress.compile_seconds = forward.compile_seconds
    return write_result(
        workdir,
        run,
        progress,
        scores,
        steps=0,
        epochs=0,
        template=template,
        templates={name: tried[name][0][metric] for name in tried},
    )
