"""What a run has come to, saved with its state."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """What a run must remember besides the state: saved with it.

    Attributes:
        best: best validation metric so far, None before the first evaluation.
        best_step: where it was.
        worse: evaluations since.
        validation: the metrics of the best.
        seconds: in the training phase: steps and waiting for data, without compilation,
            evaluation and saving.
        tokens: real tokens trained on.
        examples: rows trained on.
        compile_seconds: of this and earlier parts of the run.
        logged_seconds, logged_tokens, logged_examples: of these, what is in a row of the log.
        losses: of the steps since the last row.
    """

    best: float | None = None
    best_step: int = -1
    worse: int = 0
    validation: dict[str, Any] | None = None
    seconds: float = 0.0
    tokens: int = 0
    examples: int = 0
    compile_seconds: float = 0.0
    logged_seconds: float = 0.0
    logged_tokens: int = 0
    logged_examples: int = 0
    losses: list[float] = field(default_factory=list)

    def judge(self, found: dict[str, Any], metric: str, step: int) -> None:
        """Notes whether an evaluation's `metric` is the best so far; a loss is best when least."""
        sign = -1 if metric == "loss" else 1
        if self.best is None or sign * found[metric] > sign * self.best:
            self.best, self.best_step, self.worse = found[metric], step, 0
            self.validation = found
        else:
            self.worse += 1
