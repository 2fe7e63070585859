"""One session of a run: from its first step or its newest checkpoint to its end, or to a signal."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint.utils import to_shape_dtype_struct

from ftjax.config.saved import to_json
from ftjax.data.loading import Loader
from ftjax.data.streaming import StreamLoader
from ftjax.errors import Stopped
from ftjax.evaluation.forward import Forward
from ftjax.evaluation.written_answers import is_written
from ftjax.files import write_text
from ftjax.forecast.chips import peak_flops
from ftjax.forecast.least_work import Least
from ftjax.parallel.mesh import local_rows
from ftjax.paths import Flat
from ftjax.regularization.l2_sp import starts
from ftjax.runs.ahead_of_steps import Computed, compute
from ftjax.runs.announce import announced, best_of, extended, stopped_at
from ftjax.runs.evaluator import Evaluator
from ftjax.runs.held_out import HELD_OUT, diagnose, write_texts
from ftjax.runs.result import set_result_aside, write_result
from ftjax.runs.saver import Saver, read_checkpoint
from ftjax.setup.diagnostics import of_data
from ftjax.setup.model import Run, with_bias
from ftjax.setup.splits import Data
from ftjax.training.feed import Feed
from ftjax.training.loop import Rhythm, train_steps
from ftjax.training.memory import free
from ftjax.training.profile import Profiler, dump
from ftjax.training.progress import Progress
from ftjax.training.recipe import Recipe
from ftjax.training.signals import stop_signal
from ftjax.training.step import State, init_state
from ftjax.training.step_log import StepLog
from ftjax.training.step_programs import StepPrograms
from ftjax.training.stepper import Stepper
from ftjax.workdir.checkpoints import Checkpoints
from ftjax.workdir.folder import length_before
from ftjax.workdir.layouts import keep_layout
from ftjax.workdir.lock import Lock
from ftjax.workdir.records import Records
from ftjax.workdir.result import PENDING
from ftjax.workdir.resuming import best, newest


@dataclass(frozen=True)
class Session:
    """What a session works with.

    Attributes:
        run: the model in place.
        computed: the run's examples.
        workdir: the work folder.
        recipe: what steps do.
        feed: their batches.
        frozen: leaves that steps read, with the copies that a regularizer pulls to.
        checkpoints: of the work folder.
        base: fingerprint of the base model.
    """

    run: Run
    computed: Computed
    workdir: Path
    recipe: Recipe
    feed: Feed
    frozen: Flat
    checkpoints: Checkpoints
    base: str

    @property
    def rhythm(self) -> Rhythm:
        settings, total = self.run.config.train, self.recipe.total
        eval_every = settings.eval_every or self.feed.loader.steps_per_epoch or total
        save_every = settings.checkpoint_every or eval_every
        return Rhythm(total, settings.log_every, eval_every, save_every)


def train_session(run: Run, data: Data, workdir: Path, lock: Lock, base: str) -> dict[str, Any]:
    """Trains from where the work folder is, to the end.

    Args:
        run: the model in place.
        data: of the run.
        workdir: the work folder.
        lock: of the work folder.
        base: fingerprint of the base model.

    Returns:
        The result.

    Raises:
        Stopped: a signal stopped it, after saving.
        UserError: what is there cannot be gone on with, or a loss is not finite.
    """
    run = with_bias(run, run.task.first_bias(data.counted))
    session = _begin(run, data, workdir, base)
    state, progress, notes = _started(session)
    step, total = int(state.step), session.recipe.total
    if step < total:
        set_result_aside(workdir, step)
    is_first_host = jax.process_index() == 0
    if is_first_host:
        write_text(workdir / "config.json", to_json(run.config))  # paths may be new
        size = run.config.train.eval_batch_size
        keep_layout(workdir, session.computed.layouts["test"], size)
    with ExitStack() as closing:
        closing.callback(session.checkpoints.close)  # waits for the one that is being written
        records = Records(workdir, step, total, is_first_host)
        closing.callback(records.close)
        lengths = session.computed.layout.lengths
        for line in [*notes, *announced(run, session.computed.data, total, lengths, step)]:
            records.say(line)
        computed, size = session.computed, run.config.train.eval_batch_size
        forward = Forward(run.mesh, size, run.outputs, computed.vary)
        closing.callback(forward.close)
        evaluate = Evaluator(run, computed.data, computed.layouts, forward, progress, records)
        state = _train(session, state, evaluate, lock, records, closing)
        if progress.best.score is not None:
            records.say(best_of(evaluate.metric, progress.best))
        return _finish(session, state, evaluate)


def _begin(run: Run, data: Data, workdir: Path, base: str) -> Session:
    config, settings = run.config, run.config.train
    computed = compute(run, data)
    data = computed.data
    local = partial(local_rows, run.mesh)
    kind, rows = Loader, data.splits.get("train")
    if data.stream is not None:
        kind, rows = StreamLoader, data.stream
    loader = kind(rows, settings.batch_size, computed.layout, config.seed, local, computed.vary)
    total = settings.steps or settings.epochs * loader.steps_per_epoch
    recipe = Recipe(config, run.task.fitted(data.counted, data.names), run.tuned, total)
    new = {*run.absent, *(path for path in run.trainable if path not in run.tuned.base.shapes)}
    pulled_to = starts(run.trainable, new, config.regularization)
    frozen = run.frozen | {path: jnp.copy(leaf) for path, leaf in pulled_to.items()}
    feed = Feed(loader, run.mesh, total)
    checkpoints = Checkpoints(workdir / "checkpoints", settings.keep)
    return Session(run, computed, workdir, recipe, feed, frozen, checkpoints, base)


def _started(session: Session) -> tuple[State, Progress, list[str]]:
    """The state of the newest checkpoint, or the first; what the run has come to; and notes."""
    run, recipe, computed = session.run, session.recipe, session.computed
    read = partial(read_checkpoint, session.checkpoints, run, recipe, session.base)
    checkpoint, notes = newest(session.checkpoints, read)
    if checkpoint is None:
        phase, averaged = recipe.phase(0), recipe.average is not None
        place = (run.config.seed, run.mesh, phase.partition, averaged)
        progress = Progress(compile_seconds=computed.compile_seconds)
        progress.totals.seconds += computed.seconds if computed.is_cached else 0.0
        return init_state(run.trainable, recipe.optimizer(phase), *place), progress, notes
    state, meta, progress = checkpoint
    session.feed.go_on(meta)
    before = length_before(session.workdir, meta, recipe.total)
    if recipe.total > before:
        progress.best.worse = 0
        notes = [*notes, extended(recipe, before, int(state.step))]
    return state, progress, notes


def _train(
    session: Session,
    state: State,
    evaluate: Evaluator,
    lock: Lock,
    records: Records,
    closing: ExitStack,
) -> State:
    """The state after the last step.

    Raises:
        Stopped: a signal came.
    """
    run, recipe, feed, progress = session.run, session.recipe, session.feed, evaluate.progress
    save = Saver(
        session.checkpoints, lock, records, feed, progress, run, recipe.total, session.base
    )
    peak = None if session.computed.is_cached else peak_flops(jax.devices())
    dumped = run.config.train.dump_programs and jax.process_index() == 0
    programs = StepPrograms(
        recipe,
        feed.loader,
        run.mesh,
        session.frozen,
        Least(run.config).of_batch if peak is not None else None,
        partial(dump, folder=session.workdir / "programs") if dumped else None,
    )
    closing.callback(programs.close)
    profiler = Profiler(run.config.train.profile_steps, session.workdir / "profile")
    closing.callback(profiler.end)
    log = StepLog(progress, records, feed.epochs, programs.flops, peak, save.skipped)
    done = int(state.step)
    step = Stepper(recipe, feed, programs, session.frozen, log, done, evaluate.begin)
    with stop_signal(done) as stopping:
        state, signal = train_steps(
            state, profiler.around(step), log, evaluate, save, stopping, session.rhythm
        )
    if signal:
        records.say(stopped_at(signal, int(state.step)))
        raise Stopped(signal)
    return state


def _finish(session: Session, state: State, evaluate: Evaluator) -> dict[str, Any]:
    """The test split once, on the best; and the result."""
    run, data, progress = session.run, session.computed.data, evaluate.progress
    records, step, params = evaluate.records, int(state.step), state.best_params
    notes: list[str] = []
    if progress.best.step < 0:  # no validation split: the last is all there is
        progress.best.step = step
    free(state.opt_state)
    if progress.best.step != step:
        shapes = jax.tree.map(to_shape_dtype_struct, params)
        free((state.params, state.average))
        params, notes = best(session.checkpoints, progress.best, shapes, evaluate.judge)
    for note in notes:
        records.say(note)
    records.keep()
    held_out = [evaluate.held_out(params, name) for name in HELD_OUT if name in data.splits]
    result = partial(
        write_result,
        session.workdir,
        run,
        progress,
        held_out[-1].scores if "test" in data.splits else None,
        steps=step,
        epochs=session.feed.epochs(step),
        cached_frozen=session.computed.is_cached,
        **({"notes": notes} if notes else {}),
        **({} if data.stream is None else data.stream.counts),
        **run.tuned.method.report(run.tuned.base, params),
    )
    if held_out and is_written(run):
        result(**{PENDING: ["what is written"]})  # is on disk, whatever comes of that
        write_texts(run, params, held_out[-1], evaluate.generator)
    doubts = diagnose(session.workdir, run.task, data.names, evaluate.metric, held_out)
    for doubt in doubts:
        records.say(f"warning: {doubt}")
    return result(warnings=[*of_data(data.names, data.report), *doubts])
