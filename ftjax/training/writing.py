"""What a model in place writes for the rows of a split."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ftjax.data.sources import Split
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.generation import decode, settings
from ftjax.generation.text import Generator
from ftjax.partition import merge
from ftjax.paths import Flat
from ftjax.tasks.written import Written, merged, ready
from ftjax.training.run import Run


def writer(run: Run, params: Flat) -> Generator:
    """What writes by a model in place, and reads of prompts what training reads of texts.

    Args:
        run: the model, for a `Written` task.
        params: its trainable leaves.

    Raises:
        UserError: the folder or the task asks for what cannot be.
    """
    tokenizer = load_tokenizer(run.folder)
    changes = {"temperature": 0.0, "num_return_sequences": 1, **ready(run.task, tokenizer)}
    asked = settings.of_folder(run.folder, **changes)
    longest = run.config.data.max_length
    return Generator(run.tuned, merge(params, run.frozen), tokenizer, asked, longest=longest)


def write(run: Run, params: Flat, prompts: Sequence[Any]) -> list[str]:
    """What is written after each prompt, or chat.

    Args:
        run: the model, for a `Written` task.
        params: its trainable leaves.
        prompts: in any order; rows of a batch are of like length.
    """
    generator = writer(run, params)
    order = np.argsort([-len(str(prompt)) for prompt in prompts], kind="stable")
    size, texts = run.config.train.eval_batch_size, [""] * len(prompts)
    for start in range(0, len(order), size):
        several = order[start : start + size]
        batch = [prompts[i] for i in several]
        batch += batch[-1:] * (min(size, len(order)) - len(batch))  # one shape
        for i, found in zip(several, generator(batch), strict=False):
            texts[i] = found[0].strip()
    return texts


def is_written(run: Run) -> bool:
    """Whether the task is scored by what is written."""
    return isinstance(run.task, Written) and bool(run.task.generate)


def _asked(run: Run, split: Split) -> tuple[list[Any], list[list[str]]]:
    """The first `task.generate` prompts of a split, and what is wanted of each."""
    prompts, references = merged(run.task.prompts(split), run.task.references(split))
    count = len(prompts) if run.task.generate < 0 else run.task.generate
    return prompts[:count], references[:count]


def check_written(run: Run, split: Split) -> dict[str, Any]:
    """Checks before training that a split can be written for, and be scored: a row of the report.

    Raises:
        UserError: its prompts cannot be read, the model has no room for answers, or a metric
            cannot be had.
    """
    prompts, references = _asked(run, split)
    generator = writer(run, run.trainable)
    try:
        decode.check(run.tuned, generator.settings, 1)
        cut = sum(is_long for _, is_long in generator.tokens(prompts))
        run.task.written(references[0][:1], references[:1])
    except UserError as error:
        raise UserError(f"{split.file}: task.generate={run.task.generate}: {error}") from error
    counts = {"rows_in": len(split.rows), "rows_out": len(prompts), "cut": cut}
    return {"step": "prompt", **counts}


def written_scores(run: Run, params: Flat, split: Split) -> dict[str, Any]:
    """Metrics of what is written for the first `task.generate` prompts of a split that has answers.

    Rows with one prompt are written for once, and all of them say what is wanted.
    """
    if not is_written(run):
        return {}
    prompts, references = _asked(run, split)
    texts = write(run, params, prompts)
    return {**run.task.written(texts, references), "written": len(prompts)}
