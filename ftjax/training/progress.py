"""What a run has come to, saved with its state."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ftjax.data.loading import Counts
from ftjax.tasks.base import LOWER

# What a checkpoint calls the fields of `Best`.
BEST = {"best": "score", "best_step": "step", "worse": "worse", "validation": "metrics"}


def gain(score: float, better: str) -> float:
    """A score as the more, the better; what is no number is worse than any."""
    if math.isnan(score):
        return -math.inf
    return -score if better == LOWER else score


@dataclass
class Best:
    """The best of a run's evaluations.

    Attributes:
        score: its validation metric, None before there is one that is a number.
        step: where it was.
        worse: evaluations since.
        metrics: all of its; while there is none, of the last.
    """

    score: float | None = None
    step: int = -1
    worse: int = 0
    metrics: dict[str, Any] | None = None

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
        none = self.score is None or math.isnan(self.score)
        sound = not math.isnan(metrics[metric]) and not math.isnan(metrics.get("loss", 0.0))
        if sound and (none or gain(metrics[metric], better) > gain(self.score, better)):
            self.score, self.step, self.worse = metrics[metric], step, 0
            self.metrics = metrics
            return
        self.worse += 1
        if none:
            self.score, self.step, self.metrics = None, -1, metrics


@dataclass
class Totals:
    """What is counted over the steps of a run.

    Attributes:
        seconds: in the training phase: steps and waiting for data, without compilation,
            evaluation and saving.
        tokens: real tokens trained on.
        examples: rows trained on.
        slots: places for tokens in the batches, padding among them.
        waited: of `seconds`, waiting for data.
        flops: that the method needs at least, where the chip's peak is known.
    """

    seconds: float = 0.0
    tokens: int = 0
    examples: int = 0
    slots: int = 0
    waited: float = 0.0
    flops: float = 0.0

    def add(self, batch: Counts, flops: float) -> None:
        """Counts a batch that was trained on."""
        self.tokens += batch.tokens
        self.examples += batch.examples
        self.slots += batch.slots
        self.flops += flops

    def since(self, before: "Totals") -> "Totals":
        """What was counted after `before`."""
        earlier = asdict(before)
        return Totals(**{name: count - earlier[name] for name, count in asdict(self).items()})


@dataclass
class Progress:
    """What a run must remember besides the state: saved with it.

    Attributes:
        best: of its evaluations.
        totals: over its steps.
        logged: of those, what is in a row of the log.
        losses: of the steps since the last row.
        skipped: steps that changed nothing, their loss or gradient being not finite.
        compile_seconds: of this and earlier parts of the run.
    """

    best: Best = field(default_factory=Best)
    totals: Totals = field(default_factory=Totals)
    logged: Totals = field(default_factory=Totals)
    losses: list[float] = field(default_factory=list)
    skipped: int = 0
    compile_seconds: float = 0.0

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
        since = self.totals.since(self.logged)
        seconds = max(since.seconds, 1e-9)
        row = {
            "step": step,
            **({} if epoch is None else {"epoch": epoch}),
            **({"loss": statistics.fmean(self.losses)} if self.losses else {}),
            "learning_rate": last["learning_rate"],
            "grad_norm": last["grad_norm"],
            "skipped": self.skipped,
            "tokens_per_second": since.tokens / seconds,
            "examples_per_second": since.examples / seconds,
            "token_efficiency": since.tokens / max(since.slots, 1),
            "input_wait": since.waited / seconds,
            **({"mfu": since.flops / seconds / peak} if peak else {}),
        }
        self.logged, self.losses = replace(self.totals), []
        return row

    def saved(self) -> dict[str, Any]:
        """As checkpoints have it, in one mapping; what is counted later is not in it."""
        own = asdict(self)
        best, totals = own.pop("best"), own.pop("totals")
        return {**own, **totals, **{key: best[name] for key, name in BEST.items()}}

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> "Progress":
        """Of what `saved` gave, perhaps of an earlier version."""
        best = {BEST[key]: value for key, value in saved.items() if key in BEST}
        totals = {name: value for name, value in saved.items() if name in asdict(Totals())}
        own = {k: v for k, v in saved.items() if k not in {*BEST, *totals, "logged"}}
        logged = Totals(**saved.get("logged", {}))
        return cls(Best(**best), Totals(**totals), logged, **own)
