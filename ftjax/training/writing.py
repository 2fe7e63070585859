"""What a model in place writes for the rows of a split."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ftjax.data.sources import Split
from ftjax.formats.folder import load_tokenizer
from ftjax.generation import settings
from ftjax.generation.text import Generator
from ftjax.partition import merge
from ftjax.paths import Flat
from ftjax.tasks.written import Written, ready
from ftjax.training.run import Run


def write(run: Run, params: Flat, prompts: Sequence[Any]) -> list[str]:
    """What is written after each prompt, or chat.

    Args:
        run: the model, for a `Written` task.
        params: its trainable leaves.
        prompts: in any order; rows of a batch are of like length.
    """
    tokenizer = load_tokenizer(run.folder)
    changes = {"temperature": 0.0, "num_return_sequences": 1, **ready(run.task, tokenizer)}
    asked = settings.of_folder(run.folder, **changes)
    generator = Generator(run.tuned, merge(params, run.frozen), tokenizer, asked)
    order = np.argsort([-len(str(prompt)) for prompt in prompts], kind="stable")
    size, texts = run.config.train.eval_batch_size, [""] * len(prompts)
    for start in range(0, len(order), size):
        several = order[start : start + size]
        batch = [prompts[i] for i in several]
        batch += batch[-1:] * (min(size, len(order)) - len(batch))  # one shape
        for i, found in zip(several, generator(batch), strict=False):
            texts[i] = found[0].strip()
    return texts


def written_scores(run: Run, params: Flat, split: Split) -> dict[str, Any]:
    """Metrics of what is written for the first `task.generate` rows of a split that has answers."""
    task = run.task
    if not isinstance(task, Written) or not task.generate:
        return {}
    count = len(split.rows) if task.generate < 0 else min(task.generate, len(split.rows))
    part = Split(split.file, split.rows.select(range(count)))
    texts = write(run, params, task.prompts(part))
    return {**task.written(texts, task.references(part)), "written": count}
