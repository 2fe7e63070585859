"""What a model in place writes for the rows of a split."""

from collections.abc import Sequence
from dataclasses import replace
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


def generator_of(run: Run, params: Flat) -> Generator:
    """What writes for a `Written` task as it is scored: the most probable texts."""
    tokenizer = load_tokenizer(run.folder)
    changes = {"temperature": 0.0, "num_return_sequences": 1, **ready(run.task, tokenizer)}
    asked = settings.of_folder(run.folder, **changes)
    return Generator(run.tuned, merge(params, run.frozen), tokenizer, asked)


def write(
    run: Run, params: Flat, prompts: Sequence[Any], generator: Generator | None = None
) -> list[str]:
    """What is written after each prompt, or chat.

    Args:
        run: the model, for a `Written` task.
        params: its trainable leaves.
        prompts: in any order; rows of a batch are of like length.
        generator: of the same run, whose programs are used again.
    """
    if generator is None:
        generator = generator_of(run, params)
    generator = generator.with_params(merge(params, run.frozen))
    order = np.argsort([-len(str(prompt)) for prompt in prompts], kind="stable")
    size, texts = run.config.train.eval_batch_size, [""] * len(prompts)
    for start in range(0, len(order), size):
        several = order[start : start + size]
        batch = [prompts[i] for i in several]
        batch += batch[-1:] * (min(size, len(order)) - len(batch))  # one shape
        for i, found in zip(several, generator(batch), strict=False):
            texts[i] = found[0].strip()
    return texts


def written_scores(
    run: Run,
    params: Flat,
    split: Split,
    generator: Generator | None = None,
    kept: dict[int, str] | None = None,
) -> dict[str, Any]:
    """Metrics of what is written for the first `task.generate` rows that have a reference.

    Args:
        run: the model.
        params: its trainable leaves.
        split: with answers.
        generator: see `write`.
        kept: what is written is put here, by index of the row.
    """
    task = run.task
    if not isinstance(task, Written) or not task.generate:
        return {}
    references = task.references(split)
    chosen = [i for i, wanted in enumerate(references) if wanted is not None]
    chosen = chosen if task.generate < 0 else chosen[: task.generate]
    if not chosen:
        return {}
    part = replace(split, rows=split.rows.select(chosen))
    texts = write(run, params, task.prompts(part), generator)
    if kept is not None:
        kept |= dict(zip(chosen, texts, strict=True))
    return {**task.written(texts, [references[i] for i in chosen]), "written": len(chosen)}
