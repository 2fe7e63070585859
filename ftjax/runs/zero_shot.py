"""Runs of methods that train nothing: templates are chosen on validation, tested once."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ftjax import methods, tasks
from ftjax.data.sources import Split
from ftjax.errors import UserError, require
from ftjax.evaluation import preparation_models
from ftjax.evaluation.label_scores import POOL, Scored, Scorer, announce
from ftjax.evaluation.prompts import draw, rows_of
from ftjax.files import write_text
from ftjax.formats.folder import fingerprint, locate
from ftjax.methods.prompting import HEADS
from ftjax.parallel.agreement import broadcast, first, require_same
from ftjax.runs.held_out import HeldOut, diagnose
from ftjax.runs.result import write_result
from ftjax.runs.start import begin
from ftjax.setup.diagnostics import of_data
from ftjax.setup.model import best_metric, place_model, require_measured
from ftjax.setup.splits import read_labelled
from ftjax.training.progress import Progress
from ftjax.workdir.folder import check_workdir, open_workdir, write_labels
from ftjax.workdir.lock import Lock
from ftjax.workdir.records import write_data_report
from ftjax.workdir.shared import require_same_config, require_shared_folder


def choose_template(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Chooses the template by the validation metric, and tests it once.

    Returns:
        The result that result.json holds.

    Raises:
        UserError: bad input, several templates and no validation split to choose on, or another
            process at work in the folder.
    """
    require_same_config(config)
    with Lock(workdir):
        require_shared_folder(workdir)
        first(partial(check_workdir, workdir, config))
        begin(config, workdir)
        return _result(config, workdir)


@dataclass(frozen=True)
class Judge:
    """Scores what templates give of splits.

    Attributes:
        task: of the run.
        splits: by name.
        names: of the labels.
        report: of the data, to which what became of the prompts is added.
        held_out: what was said, by split and template.
    """

    task: Any
    splits: Mapping[str, Split]
    names: tuple[str, ...]
    report: list[dict[str, Any]]
    held_out: dict[tuple[str, str], HeldOut] = field(default_factory=dict)

    def __call__(self, name: str, template: str, scored: Scored) -> dict[str, Any]:
        """Metrics of a split."""
        rows, cut, split = len(scored.logits), scored.examples.truncated, self.splits[name]
        counts = {"rows_in": rows, "rows_out": rows, "fewer_shots": scored.fewer, "cut": cut}
        self.report.append({"step": "prompt", "split": name, "template": template, **counts})
        announce(name, template, scored)
        metrics = broadcast(self.task.score(scored.logits, scored.examples, split, self.names))
        said = (split, scored.examples, scored.logits, metrics)
        self.held_out[name, template] = HeldOut(name, *said, {})
        return metrics


def _result(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    task, method = tasks.create(config.task), methods.create(config.method)
    metric = best_metric(config, task)
    splits, names, report = read_labelled(config, task, preparation_models)
    if "validation" in splits:
        require_measured(metric, task, splits["validation"], names)
    pairs = "text_pair" in splits["train"].rows.column_names
    pool = draw(method, rows_of(splits["train"]) if method.shots else [], names, config.seed)
    rows = (part for split in splits.values() for part in split.content())
    require_same("the data, as it is prepared,", chain(names, rows))
    base = fingerprint(locate(config.model.path))
    require_same("the base model", [base])
    first(partial(open_workdir, workdir, config))
    run = place_model(config, names)
    kind = next(kind for kind, head in HEADS.items() if head == run.tuned.model.head)
    templates = method.templates_of(kind, pairs)
    if len(templates) > 1 and "validation" not in splits:
        raise UserError("prompting chooses its template on validation: set data.splits.validation")
    scorer = Scorer(run, names, pool)
    first(partial(write_labels, workdir, names))
    shown = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in pool)
    first(partial(write_text, workdir / POOL, shown))

    judge = Judge(task, splits, names, report)
    progress, by_template, template, test = Progress(), {}, templates[0], None
    if "validation" in splits:
        by_template = _try(scorer, judge, templates, metric, progress)
        template = templates[progress.best.step]
    progress.best.step = 0  # nothing was trained
    if "test" in splits:
        test = judge("test", template, scorer(splits["test"], [template])[0])
    progress.compile_seconds = scorer.compile_seconds
    first(partial(write_data_report, workdir, report))
    held = [answers for (_, name), answers in judge.held_out.items() if name == template]
    doubts = [*of_data(names, report), *diagnose(workdir, task, names, metric, held)]
    for doubt in doubts if jax.process_index() == 0 else ():
        print(f"warning: {doubt}")
    fixed = pool if method.demonstrations != "nearest" else []
    return write_result(
        workdir,
        run,
        progress,
        test,
        steps=0,
        epochs=0,
        kind=kind,
        template=template,
        templates=by_template,
        demonstrations=fixed or f"{method.shots} nearest of {len(pool)}" if pool else [],
        calibrated=method.calibrate,
        base=base,
        warnings=doubts,
    )


def _try(
    scorer: Scorer, judge: Judge, templates: Sequence[str], metric: str, progress: Progress
) -> dict[str, float]:
    """The validation metric of each template; the best "step" of a progress is the best's number.

    Raises:
        UserError: none is a number.
    """
    start, compiled = time.perf_counter(), scorer.compile_seconds
    results, by_template = scorer(judge.splits["validation"], templates), {}
    for number, (template, scored) in enumerate(zip(templates, results, strict=True)):
        metrics = judge("validation", template, scored)
        progress.best.judge(metrics, metric, judge.task.better[metric], number)
        progress.totals.tokens += int(scored.examples.sizes.sum())
        progress.totals.examples += len(scored.logits)
        by_template[template] = metrics[metric]
    require(progress.best.score is not None, f"no template's validation {metric} is a number")
    compiled = scorer.compile_seconds - compiled
    progress.totals.seconds = time.perf_counter() - start - compiled
    return by_template
