"""Evaluation in the course of a run: scores of its splits, and which step is the best."""

from dataclasses import dataclass
from typing import Any

from ftjax.data.planning import Layout
from ftjax.evaluation.forward import Forward
from ftjax.evaluation.written_answers import generator_of, written_scores
from ftjax.generation.text import Generator
from ftjax.parallel import agreement
from ftjax.paths import Flat
from ftjax.runs.announce import validated
from ftjax.runs.held_out import HeldOut
from ftjax.setup.model import Run, best_metric
from ftjax.setup.splits import Data
from ftjax.training.progress import Best, Progress
from ftjax.training.step import State
from ftjax.workdir.records import Records


@dataclass
class Evaluator:
    """Scores what parameters say of a run's held-out splits.

    Attributes:
        run: the model in place.
        data: the run's.
        layouts: name of a split → the shapes of its batches.
        forward: of `Run.outputs`.
        progress: of the run, which the best is noted in.
        records: where scores are logged.
        generator: of tasks that are scored by what is written, once it was needed.
    """

    run: Run
    data: Data
    layouts: dict[str, Layout]
    forward: Forward
    progress: Progress
    records: Records
    generator: Generator | None = None

    @property
    def metric(self) -> str:
        """The validation metric that chooses the best step."""
        return best_metric(self.run.config, self.run.task)

    @property
    def is_done(self) -> bool:
        """Whether it is time to stop early."""
        limit = self.run.config.train.early_stopping
        return bool(limit) and self.progress.best.worse >= limit

    def begin(self, state: State) -> None:
        """Begins to compile what validation needs."""
        if "validation" in self.data.splits:
            split, layout = self.data.splits["validation"], self.layouts["validation"]
            self.forward.begin(state.best_params, self.run.frozen, split, layout)

    def __call__(self, state: State, step: int) -> None:
        """Validates, where there is a validation split, and notes whether this is the best."""
        if "validation" not in self.data.splits:
            return
        scores = self.judge(state.best_params, step, self.progress.best)
        numbers = {f"validation/{k}": v for k, v in scores.items() if isinstance(v, float)}
        self.records.log({"step": step, **numbers})
        self.records.say(validated(self.metric, scores, step))

    def judge(self, params: Flat, step: int, best: Best) -> dict[str, Any]:
        """The validation metrics of a step, and noted whether they are `best`'s."""
        # Hosts' processors may round scores otherwise, and what is best decides.
        scores = self._scores("validation", self._outputs(params, "validation"))
        if self.metric in self.run.task.at_end:
            self.generator = self.generator or generator_of(self.run, params)
            split = self.data.raw["validation"]
            scores |= written_scores(self.run, params, split, self.generator)
        scores = agreement.broadcast(scores)
        best.judge(scores, self.metric, self.run.task.better[self.metric], step)
        return scores

    def held_out(self, params: Flat, name: str) -> HeldOut:
        """A held-out split with what the best parameters say of it; nothing is written yet."""
        outputs, data = self._outputs(params, name), self.data
        scores = self._scores(name, outputs) if name == "test" else self.progress.best.metrics
        return HeldOut(name, data.raw[name], data.splits[name], outputs, scores, {})

    def _scores(self, name: str, outputs: Any) -> dict[str, Any]:
        data = self.data
        return self.run.task.score(outputs, data.splits[name], data.raw[name], data.names)

    def _outputs(self, params: Flat, name: str) -> Any:
        before = self.forward.compile_seconds
        split, layout = self.data.splits[name], self.layouts[name]
        outputs = self.forward(params, self.run.frozen, split, layout)
        self.progress.compile_seconds += self.forward.compile_seconds - before
        return outputs
