"""The result of a run: what `result.json` holds."""

from pathlib import Path
from typing import Any

import jax

from ftjax.files import write_json
from ftjax.runs.report import write_report
from ftjax.setup.model import Run, best_metric
from ftjax.training.learning_rate import peak_rate
from ftjax.training.memory import peak_memory_bytes
from ftjax.training.progress import Progress


def write_result(
    workdir: Path,
    run: Run,
    progress: Progress,
    test: dict[str, Any] | None,
    *,
    steps: int,
    epochs: float | None,
    **more: Any,
) -> dict[str, Any]:
    """Writes `result.json`, and `report.html` of it and what lies beside it.

    Args:
        workdir: the work folder.
        run: what was trained.
        progress: what the run has come to; its validation metrics are those of the best step.
        test: metrics of the test split, where there is one.
        steps: updates done.
        epochs: passes over the training split; None for a stream.
        more: what this kind of run adds.

    Returns:
        The result.
    """
    config = run.config
    trainable, total = run.tuned.partition.counts(run.tuned.shapes)
    totals = progress.totals
    seconds = max(totals.seconds, 1e-9)
    scores = {"validation": progress.best.metrics, "test": test}
    result = {
        "method": config.method.name,
        "model": config.model.from_run or config.model.path,
        "task": config.task.name,
        "data": f"{config.data.source}:{config.data.path}",
        "seed": config.seed,
        "steps": steps,
        "epochs": epochs,
        "trainable_params": trainable,
        "total_params": total,
        "train_seconds": round(totals.seconds, 3),
        "compile_seconds": round(progress.compile_seconds, 3),
        "examples_per_second": round(totals.examples / seconds, 2),
        "tokens_per_second": round(totals.tokens / seconds, 2),
        "token_efficiency": round(totals.tokens / max(totals.slots, 1), 4),
        "peak_memory_bytes": peak_memory_bytes(),
        "learning_rate": peak_rate(config, run.tuned),
        "best_step": progress.best.step,
        "best_metric": best_metric(config, run.task),
        **({"fold": config.data.splits.fold} if config.data.splits.folds else {}),
        **more,
        "metrics": {split: metrics for split, metrics in scores.items() if metrics},
    }
    if jax.process_index() == 0:
        write_json(workdir / "result.json", result)
        write_report(workdir)
    return result


def set_result_aside(workdir: Path, step: int) -> None:
    """Renames the result of a run that goes on beyond it, at `step`."""
    path = workdir / "result.json"
    if jax.process_index() == 0 and path.exists():
        path.rename(workdir / f"result_{step}.json")
