"""What a run has come to, saved with its state."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ftjax.data.loading import Counts
from ftjax.tasks.base import LOWER

COUNTED = ("seconds", "tokens", "examples", "slots", "waited", "flops")


def gain(score: float, better: str) -> float:
    """A score as the more, the better; what is no number is worse than any."""
    if math.isnan(score):
        return -math.inf
    return -score if better == LOWER else score


@dataclass
class Progress:
    """What a run must remember besides the state: saved with it.

    Attributes:
        best: best validation metric so far, None before there is one that is a number.
        best_step: where it was.
        worse: evaluations since.
        validation: the metrics of the best; while there is none, of the last.
        seconds: in the training phase: steps and waiting for data, without compilation,
            evaluation and saving.
        tokens: real tokens trained on.
        examples: rows trained on.
        slots: places for tokens in the batches, padding among them.
        skipped: steps that changed nothing, their loss or gradient being not finite.
        compile_seconds: of this and earlier parts of the run.
        waited: of `seconds`, waiting for data.
        flops: that the method needs at least, where the chip's peak is known.
        logged: of what is counted, what is in a row of the log.
        losses: of the steps since the last row.
    """

    best: float | None = None
    best_step: int = -1
    worse: int = 0
    validation: dict[str, Any] | None = None
    seconds: float = 0.0
    tokens: int = 0
    examples: int = 0
    slots: int = 0
    skipped: int = 0
    compile_seconds: float = 0.0
    waited: float = 0.0
    flops: float = 0.0
    logged: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def count(self, held: Counts) -> None:
        """Adds a batch that was trained on."""
        self.tokens += held.tokens
        self.examples += held.examples
        self.slots += held.slots

    def row(
        self, step: int, epoch: float | None, last: Mapping[str, float], peak: float | None
    ) -> dict[str, Any]:
        """A row of the log, over the steps since the last one.

        Args:
            step: the last.
            epoch: passes over the data so far; None for a stream.
            last: metrics of the last step.
            peak: FLOPs a second of all devices together; None where that is not known.
        """
        now = {name: getattr(self, name) for name in COUNTED}
        since = {name: value - self.logged.get(name, 0) for name, value in now.items()}
        seconds = max(since["seconds"], 1e-9)
        row = {
            "step": step,
            **({} if epoch is None else {"epoch": epoch}),
            **({"loss": statistics.fmean(self.losses)} if self.losses else {}),
            "learning_rate": last["learning_rate"],
            "grad_norm": last["grad_norm"],
            "skipped": self.skipped,
            "tokens_per_second": since["tokens"] / seconds,
            "examples_per_second": since["examples"] / seconds,
            "token_efficiency": since["tokens"] / max(since["slots"], 1),
            "input_wait": since["waited"] / seconds,
            **({"mfu": since["flops"] / seconds / peak} if peak else {}),
        }
        self.logged, self.losses = now, []
        return row

    def judge(self, metrics: dict[str, Any], metric: str, better: str, step: int) -> None:
        """Notes whether an evaluation's `metric` is the best so far.

        What is no number is never the best, nor is a model whose loss is none, of which other
        metrics may be; while nothing else was found, there is none.

        Args:
            metrics: all metrics.
            metric: which of them chooses.
            better: HIGHER or LOWER.
            step: of the evaluation.
        """
        none = self.best is None or math.isnan(self.best)
        sound = not math.isnan(metrics[metric]) and not math.isnan(metrics.get("loss", 0.0))
        if sound and (none or gain(metrics[metric], better) > gain(self.best, better)):
            self.best, self.best_step, self.worse = metrics[metric], step, 0
            self.validation = metrics
            return
        self.worse += 1
        if none:
            self.best, self.best_step, self.validation = None, -1, metrics
