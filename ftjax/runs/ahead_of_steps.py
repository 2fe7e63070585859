"""What is computed of a run's examples once, before its first step."""

import time
from dataclasses import dataclass, replace
from functools import partial

import jax

from ftjax.data.loading import Vary
from ftjax.data.planning import Layout
from ftjax.errors import require
from ftjax.evaluation.forward import Forward, cache_features, refer
from ftjax.regularization import changes_words
from ftjax.setup.examples import choose_layout, variation
from ftjax.setup.model import Run
from ftjax.setup.splits import Data


@dataclass(frozen=True)
class Computed:
    """A run's examples as its steps and evaluations read them.

    Attributes:
        data: with outputs of the untrained model where the task refers to them, and with what the
            head reads in place of tokens where all below it is frozen.
        layout: the shapes of training's batches.
        layouts: those of held-out splits.
        vary: makes of examples those of an epoch; None where they are the same in all.
        is_cached: whether steps run the head alone.
        seconds: that it took, without compilation.
        compile_seconds: of compilation.
    """

    data: Data
    layout: Layout
    layouts: dict[str, Layout]
    vary: Vary | None
    is_cached: bool
    seconds: float
    compile_seconds: float


def compute(run: Run, data: Data) -> Computed:
    """Computes it, for all splits; the test split is run in full, once, at the end."""
    start, settings = time.perf_counter(), run.config.train
    vary = variation(run.task, run.folder)
    layout = _layout(run, data, vary)
    scaled = layout.scaled(settings.eval_batch_size / settings.batch_size)
    layouts = {"validation": scaled, "test": scaled}
    same = data.stream is None and not changes_words(run.config.regularization)
    only_head = settings.cache_frozen and run.tuned.only_head_trains
    is_cached = bool(only_head and run.task.caches and same)
    compile_seconds, splits = 0.0, dict(data.splits)
    if run.task.refers:
        forward = _reference(run, data)
        for name, examples in splits.items():
            splits[name] = refer(forward, run.trainable, run.frozen, examples, scaled)
        compile_seconds += forward.compile_seconds
    if is_cached:
        features = partial(run.tuned.apply, features_only=True)
        forward = Forward(run.mesh, settings.eval_batch_size, features)
        for name in [name for name in splits if name != "test"]:  # all hosts in one order
            examples = splits[name]
            splits[name] = cache_features(forward, run.trainable, run.frozen, examples, scaled)
        compile_seconds += forward.compile_seconds
        layout = layouts["validation"] = Layout(scaled.lengths[-1:])
    seconds = time.perf_counter() - start - compile_seconds
    data = replace(data, splits=splits)
    return Computed(data, layout, layouts, vary, is_cached, seconds, compile_seconds)


def _layout(run: Run, data: Data, vary: Vary | None) -> Layout:
    """The shapes of batches; a stream's by its first window, with room for any length."""
    config, task = run.config, run.task
    longest, rows = config.data.max_length, config.train.batch_size
    most = None if data.stream is None else (longest, task.longest_written(longest))
    parts = [data.first, *(data.splits[name] for name in data.splits if name != "train")]
    inserted = run.tuned.method.inserted
    return choose_layout(config, run.mesh, parts, rows, vary, most, task.by_token, inserted)


def _reference(run: Run, data: Data) -> Forward:
    """What the untrained model says, before anything else."""
    require(data.stream is None, f"task.name={run.config.task.name} is not for streams")
    if jax.process_index() == 0:
        count = sum(map(len, data.splits.values()))
        print(f"reference: the untrained model reads {count:,} examples, once", flush=True)
    return Forward(run.mesh, run.config.train.eval_batch_size, run.reference)
