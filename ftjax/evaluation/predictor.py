"""The best model of a work folder, ready to be run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint.utils import to_shape_dtype_struct

from ftjax.data.encode import Examples
from ftjax.data.preparation.rewriting import rewritten_prompt
from ftjax.data.sources import Split
from ftjax.errors import UserError, require
from ftjax.evaluation.forward import Forward, refer
from ftjax.evaluation.label_scores import score_chosen
from ftjax.evaluation.written_answers import write, written_scores
from ftjax.formats.folder import locate
from ftjax.generation.text import Text
from ftjax.parallel.agreement import require_same
from ftjax.parallel.mesh import batch_ways
from ftjax.partition import merge
from ftjax.paths import Flat
from ftjax.setup.earlier_runs import best_params
from ftjax.setup.examples import choose_layout, encode_split, variation
from ftjax.setup.model import Run, place_model
from ftjax.tasks.base import Task
from ftjax.training.memory import free
from ftjax.tuned import Tuned
from ftjax.workdir.configuration import PLACE, read_config
from ftjax.workdir.fingerprints import require_same_tokenizer
from ftjax.workdir.folder import read_labels
from ftjax.workdir.layouts import kept_layout


@dataclass(frozen=True)
class Predictor:
    """A work folder's model with the parameters of its best step, or of another.

    Attributes:
        run: the model in place; its trainable leaves are the step's.
        names: of the labels.
        step: the best step, or the one that was asked for.
        workdir: the work folder; None for a pretrained model.
        untrained: trainable leaves before training, where the task refers to them.
    """

    run: Run
    names: tuple[str, ...]
    step: int
    workdir: Path | None
    untrained: Flat | None = None

    @property
    def params(self) -> Flat:
        """All parameters, flat, the method's included."""
        return merge(self.run.trainable, self.run.frozen)

    def outputs(self, split: Split) -> tuple[Any, Examples]:
        """What the task is scored by, and the examples that it is of."""
        run, config = self.run, self.run.config
        require_same(f"what is read of {split.file}", split.content())
        if not run.tuned.method.trains:
            scored = score_chosen(run, self.names, self.workdir, split)
            return scored.logits, scored.examples
        examples = encode_split(config, run.task, split, self.names, run.folder)
        batch_size = config.train.eval_batch_size
        vary = variation(run.task, run.folder)
        layout = None
        if self.workdir is not None:
            place = (examples, batch_size, batch_ways(run.mesh), vary)
            layout = kept_layout(self.workdir, *place)
        if layout is None:
            more = {"inserted": run.tuned.method.inserted}
            layout = choose_layout(config, run.mesh, [examples], batch_size, vary, **more)
        if self.untrained is not None:
            forward = Forward(run.mesh, batch_size, run.reference)
            examples = refer(forward, self.untrained, run.frozen, examples, layout)
        forward = Forward(run.mesh, batch_size, run.outputs, vary)
        return forward(run.trainable, run.frozen, examples, layout), examples

    def written_scores(self, split: Split) -> dict[str, Any]:
        """Metrics of what is written for a split, where the task has any."""
        return written_scores(self.run, self.run.trainable, split)

    def written(self, split: Split) -> list[Text]:
        """What is written for each row of a split."""
        return write(self.run, self.run.trainable, self.run.task.prompts(split))


def open_predictor(workdir: Path, config: Any = None, step: int | None = None) -> Predictor:
    """The best model of a work folder, or that of another step.

    Args:
        workdir: of a run that has at least one checkpoint.
        config: its configuration as `read_config` gives it; None for that without overrides.
        step: of the checkpoint; None for the best.

    Raises:
        UserError: nothing was saved there, or not that step, or the base model has changed.
    """
    config = config or read_config(workdir)
    names = read_labels(workdir)
    require_same_tokenizer(workdir, locate(config.model.path))
    run = place_model(config, names)
    if not run.tuned.method.trains:
        if not (workdir / "result.json").exists():
            raise UserError(f"{workdir} has no result.json: the run has not finished")
        require(step is None, f"--step {step}: {workdir} has no steps, for nothing was trained")
        return Predictor(run, names, 0, workdir)
    untrained = run.trainable if run.task.refers else None
    shapes = jax.tree.map(to_shape_dtype_struct, run.trainable)
    if untrained is None:
        free(run.trainable)
    params, step = best_params(workdir, run.folder, shapes, step)
    return Predictor(replace(run, trainable=params), names, step, workdir, untrained)


def open_writer(
    workdir: Path, changes: Mapping[str, Any] | None = None, step: int | None = None
) -> tuple[Tuned, Flat, Path, Task, Callable[[Any], Any]]:
    """What `make_generator` takes, of the best model of a work folder, or that of another step.

    Args:
        workdir: of a run of a language model.
        changes: dotted key → value of what readers may change, and `data.prepare`, for prompts are
            rewritten as the texts that it was trained on.
        step: see `open_predictor`.
    """
    config = read_config(workdir, changes, (*PLACE, "data.prepare"))
    predictor = open_predictor(workdir, config, step)
    run = predictor.run
    return run.tuned, predictor.params, run.folder, run.task, prompt_rewriting(run)


def prompt_rewriting(run: Run) -> Callable[[Any], Any]:
    """What `data.prepare` of a run makes of a prompt."""
    return partial(rewritten_prompt, settings=run.config.data, schema=run.task.schema)
