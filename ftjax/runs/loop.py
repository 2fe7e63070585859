"""The training run: batches through compiled steps, evaluation, checkpoints, exact resume."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint.utils import to_shape_dtype_struct

from ftjax.config.saved import from_json, to_json
from ftjax.data.loading import Counts, Loader
from ftjax.data.planning import Layout
from ftjax.data.streaming import StreamLoader
from ftjax.errors import Stopped, UserError, require
from ftjax.evaluation.forward import Forward, cache_features, refer
from ftjax.evaluation.written import generator_of, is_written, written_scores
from ftjax.files import write_text
from ftjax.forecast.chips import peak_flops
from ftjax.formats.folder import require_same
from ftjax.generation.text import Generator
from ftjax.parallel import agreement
from ftjax.parallel.mesh import local_rows, place_rows
from ftjax.paths import Flat
from ftjax.regularization import changes_words
from ftjax.regularization.l2_sp import starts
from ftjax.runs.announce import announced, best_of, extended, stopped_at, validated
from ftjax.runs.ending import HELD_OUT, Answered, end, write_texts
from ftjax.runs.result import set_result_aside, write_result
from ftjax.setup.doubts import of_data
from ftjax.setup.examples import choose_layout, variation
from ftjax.setup.model import Run, best_metric, with_bias
from ftjax.setup.splits import Data
from ftjax.training.memory import free, memory_in_use
from ftjax.training.profile import Profiler
from ftjax.training.programs import Key, key_of
from ftjax.training.progress import Progress
from ftjax.training.recipe import Recipe
from ftjax.training.signals import stop_signal
from ftjax.training.step import State, carried_moments, init_state
from ftjax.training.step_programs import Steps
from ftjax.workdir.checkpoints import Checkpoints
from ftjax.workdir.folder import length_before, refuse_differences
from ftjax.workdir.layouts import keep_layout
from ftjax.workdir.lock import Lock
from ftjax.workdir.records import Records
from ftjax.workdir.result import PENDING
from ftjax.workdir.resuming import best, newest


class Training:
    """One run of one configuration in one work folder."""

    def __init__(self, run: Run, data: Data, workdir: Path, lock: Lock, base: str) -> None:
        self.lock, self.base = lock, base
        self.run_ = run = with_bias(run, run.task.first_bias(data.counted))
        self.data, self.workdir, self.names = data, workdir, data.names
        self.config, self.mesh, self.splits, self.raw = run.config, run.mesh, data.splits, data.raw
        settings, self.progress, self.stream = self.config.train, Progress(), data.stream
        self.vary = vary = variation(run.task, run.folder)
        layout = self._layout()
        self.eval_layout = layout.scaled(settings.eval_batch_size / settings.batch_size)
        self.forward = Forward(self.mesh, settings.eval_batch_size, run.outputs, vary)
        self.test_layout = self.eval_layout
        start = time.perf_counter()
        same = self.stream is None and not changes_words(self.config.regularization)
        only_head = settings.cache_frozen and run.tuned.only_head_trains
        self.cached = bool(only_head and run.task.caches and same)
        if run.task.refers:
            self._refer()
        if self.cached:
            self._cache_features()
            layout = self.eval_layout = Layout(self.eval_layout.lengths[-1:])
        self.feature_seconds = time.perf_counter() - start - self.progress.compile_seconds
        kind = Loader if self.stream is None else StreamLoader
        rows = self.splits["train"] if self.stream is None else self.stream
        local = partial(local_rows, self.mesh)
        self.loader = kind(rows, settings.batch_size, layout, self.config.seed, local, vary)
        per_epoch = self.loader.steps_per_epoch
        self.total = self.before = settings.steps or settings.epochs * per_epoch
        self.eval_every = settings.eval_every or per_epoch or self.total
        self.save_every = settings.checkpoint_every or self.eval_every
        self.peak = None if self.cached else peak_flops(jax.devices())
        self.profiler = Profiler(settings.profile_steps, workdir / "profile")
        self.metric = best_metric(self.config, run.task)
        self.generator: Generator | None = None
        fitted = run.task.fitted(data.counted, data.names)
        self.recipe = Recipe(self.config, fitted, run.tuned, self.total)
        new = {*run.absent, *(path for path in run.trainable if path not in run.tuned.base.shapes)}
        kept = starts(run.trainable, new, self.config.regularization)
        self.frozen = run.frozen | {path: jnp.copy(leaf) for path, leaf in kept.items()}
        place = (self.mesh, self.frozen, workdir / "programs")
        self.steps = Steps(self.recipe, self.loader, *place, counted=self.peak is not None)

    def _layout(self) -> Layout:
        """The shapes of batches; a stream's by its first window, with room for any length."""
        config, task = self.config, self.run_.task
        longest, rows = config.data.max_length, config.train.batch_size
        most = None if self.stream is None else (longest, task.longest_written(longest))
        parts = [self.data.first, *(self.splits[name] for name in self.splits if name != "train")]
        return choose_layout(config, self.mesh, parts, rows, self.vary, most, task.by_token)

    def _refer(self) -> None:
        """What the untrained model says of all splits, before anything else."""
        run, name = self.run_, self.config.task.name
        require(self.stream is None, f"task.name={name} is not for streams")
        forward = Forward(self.mesh, self.config.train.eval_batch_size, run.reference)
        if jax.process_index() == 0:
            count = sum(map(len, self.splits.values()))
            print(f"reference: the untrained model reads {count:,} examples, once", flush=True)
        for name, examples in self.splits.items():
            place = (run.trainable, run.frozen, examples, self.eval_layout)
            self.splits[name] = refer(forward, *place)
        self.progress.compile_seconds += forward.compile_seconds

    def _cache_features(self) -> None:
        run = self.run_
        features = partial(run.tuned.apply, features_only=True)
        forward = Forward(self.mesh, self.config.train.eval_batch_size, features)
        for name, examples in self.splits.items():
            if name != "test":  # the test split is run once, at the end, in full
                self.splits[name] = cache_features(
                    forward, run.trainable, run.frozen, examples, self.eval_layout
                )
        self.progress.compile_seconds += forward.compile_seconds

    def run(self) -> dict[str, Any]:
        run, settings = self.run_, self.config.train
        checkpoints = Checkpoints(self.workdir / "checkpoints", settings.keep)
        iterator = self.loader.iterate(self.total)
        state, notes = self._started(checkpoints, iterator)
        step = int(state.step)
        if self.total > self.before:
            self.progress.worse = 0
            notes.append(extended(self.recipe, self.before, step))
        if step < self.total:
            set_result_aside(self.workdir, step)
        main = jax.process_index() == 0
        if main:
            write_text(self.workdir / "config.json", to_json(self.config))  # paths may be new
            keep_layout(self.workdir, self.test_layout, settings.eval_batch_size)
        records = Records(self.workdir, step, self.total, main)
        try:
            for note in notes:
                records.say(note)
            lengths = self.loader.layout.lengths
            for line in announced(run, self.data, self.total, lengths, step):
                records.say(line)
            with stop_signal(step) as stopping:
                state, stopped = self._loop(state, iterator, checkpoints, records, stopping)
            if stopped:
                records.say(stopped_at(stopped, int(state.step)))
                raise Stopped(stopped)
            if self.progress.best is not None:
                records.say(best_of(self.metric, self.progress))
            return self._finish(checkpoints, state, records)
        finally:
            self.profiler.end()
            self.steps.close()
            self.forward.close()
            try:
                records.close()
            finally:
                checkpoints.close()  # waits for the one that is being written

    def _started(self, checkpoints: Checkpoints, iterator: Any) -> tuple[State, list[str]]:
        """The state of the newest checkpoint, or the first; and what there is to say."""
        found, notes = newest(checkpoints, partial(self._read, checkpoints))
        if found is None:
            self.progress.seconds += self.feature_seconds if self.cached else 0.0
            return self._first(), notes
        state, meta, self.progress = found
        iterator.set_state(meta["data"])
        if self.stream is not None:
            # Earlier versions kept no positions: they read the rows before once more
            self.loader.go_on(meta.get("stream") or {"starts": meta["windows"], "sources": {}})
        return state, notes

    def _first(self) -> State:
        """The state before the first step."""
        phase, averaged = self.recipe.phase(0), self.recipe.average is not None
        place = (self.config.seed, self.mesh, phase.partition, averaged)
        return init_state(self.run_.trainable, self.recipe.optimizer(phase), *place)

    def _loop(
        self,
        state: State,
        iterator: Any,
        checkpoints: Checkpoints,
        records: Records,
        stopping: Callable[[int], int],
    ) -> tuple[State, int]:
        """Steps until the end, or until a signal, whose number comes with the last state."""
        settings, progress, frozen = self.config.train, self.progress, self.frozen
        step = first = int(state.step)
        pending: list[tuple[int, Any, Counts, Key]] = []
        phase = self.recipe.phase(step)
        mark = time.perf_counter()

        def flush(log: bool = False) -> None:
            """Waits for the device, checks and counts what is pending, and logs a row."""
            nonlocal mark
            if not pending:
                return
            rows = [(at, {k: float(v) for k, v in m.items()}) for at, m, *_ in pending]
            elapsed = time.perf_counter() - mark
            good = []
            for at, row in rows:
                if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]):
                    good.append(row["loss"])
                else:
                    self._skipped(at, row, checkpoints, records)
            progress.seconds += elapsed
            for *_, held, key in pending:
                progress.count(held)
                progress.flops += self.steps.flops(key)
            progress.losses += good
            if log:
                at, last = rows[-1]
                row = progress.row(at, self._epochs(at), last, self.peak)
                records.log(row | memory_in_use())
            records.advance(len(rows))
            pending.clear()
            mark = time.perf_counter()

        done = settings.early_stopping and progress.worse >= settings.early_stopping
        while step < self.total and not done:
            self.profiler.at(step)
            before_input = time.perf_counter()
            planned, held, rows = next(iterator)
            progress.waited += time.perf_counter() - before_input
            if self.stream is not None and (window := self.loader.begun(step)) is not None:
                flush()  # hosts may not run it and a step in the same order
                agreement.require_same("a window of the stream", window.content())
            batch = place_rows(self.mesh, rows, len(planned.places))
            before, phase = phase, self.run_.tuned.at_step(step)
            if phase is not before and phase.partition.labels != before.partition.labels:
                active = phase.partition.split(state.params)[0]
                optimizer = self.recipe.optimizer(phase)
                moments = carried_moments(state.opt_state, active, optimizer, self.mesh, state.step)
                state = replace(state, opt_state=moments)
            shapes = key_of(batch)
            if phase is not before or not self.steps.ready(phase, shapes):
                flush()
                before_program = time.perf_counter()
                progress.seconds += before_program - mark  # of waiting for the batch
                self.steps.begin(phase, state, step)
                if step == first and "validation" in self.splits:
                    params, split = state.best_params, self.splits["validation"]
                    self.forward.begin(params, self.run_.frozen, split, self.eval_layout)
                self.steps(phase, shapes)
                mark = time.perf_counter()
                progress.compile_seconds += mark - before_program
            state, metrics = self.steps(phase, shapes)(state, frozen, batch)
            step += 1
            pending.append((step, metrics, held, shapes))
            due = step % self.eval_every == 0 or step == self.total
            log = step % settings.log_every == 0 or step == self.total
            stop = stopping(step)
            if log or due or step % self.save_every == 0 or stop:
                flush(log)
            if due and "validation" in self.splits:
                self._evaluate(state, step, records)
                done = settings.early_stopping and progress.worse >= settings.early_stopping
            if due or step % self.save_every == 0 or stop:
                self.lock.check()
                records.keep()
                checkpoints.save(state, self._meta(iterator), progress.best_step)
            if stop:
                checkpoints.wait()
                return state, stop
            if due or step % self.save_every == 0:
                mark = time.perf_counter()
        checkpoints.wait()
        return state, 0

    def _epochs(self, step: int) -> float | None:
        """Passes over the data by a step; a stream has none."""
        per_epoch = self.loader.steps_per_epoch
        return round(step / per_epoch, 4) if per_epoch else None

    def _skipped(
        self, step: int, row: Mapping[str, float], checkpoints: Checkpoints, records: Records
    ) -> None:
        """Counts a step that changed nothing.

        Raises:
            UserError: there have been more than `train.skip_limit`.
        """
        what = f"loss is {row['loss']}, gradient norm {row['grad_norm']} at step {step}"
        self.progress.skipped += 1
        limit = self.config.train.skip_limit
        if self.progress.skipped <= limit:
            records.say(f"{what}: skipped ({self.progress.skipped} of at most {limit})")
            return
        checkpoints.wait()  # for the one that is being written
        kept = checkpoints.latest()
        raise UserError(
            f"{what}: stopped, after {limit} that were skipped; the last good checkpoint is "
            f"{'none' if kept is None else f'step {kept}'}. A lower optimizer.learning_rate or "
            "clip_norm may help"
        )

    def _evaluate(self, state: State, step: int, records: Records) -> None:
        """Validates, and notes whether this is the best so far."""
        found = self._judge(state.best_params, step, self.progress)
        numbers = {f"validation/{k}": v for k, v in found.items() if isinstance(v, float)}
        records.log({"step": step, **numbers})
        records.say(validated(self.metric, found, step))

    def _judge(self, params: Flat, step: int, progress: Progress) -> dict[str, Any]:
        """The validation metrics of a step, and noted whether they are the best in `progress`."""
        # Hosts' processors may round scores otherwise, and what is best decides.
        found = self._score(params, "validation", self.eval_layout)
        if self.metric in self.run_.task.at_end:
            self.generator = self.generator or generator_of(self.run_, params)
            found |= written_scores(self.run_, params, self.raw["validation"], self.generator)
        found = agreement.told(found)
        progress.judge(found, self.metric, self.run_.task.better[self.metric], step)
        return found

    def _score(self, params: Flat, split: str, layout: Layout) -> dict[str, Any]:
        outputs, examples = self._outputs(params, split, layout), self.splits[split]
        return self.run_.task.score(outputs, examples, self.raw[split], self.names)

    def _outputs(self, params: Flat, split: str, layout: Layout) -> Any:
        before = self.forward.compile_seconds
        outputs = self.forward(params, self.run_.frozen, self.splits[split], layout)
        self.progress.compile_seconds += self.forward.compile_seconds - before
        return outputs

    def _meta(self, iterator: Any) -> dict[str, Any]:
        state = iterator.get_state()
        return {
            "data": state,
            "stream": self.loader.saved() if self.stream is not None else None,
            "progress": asdict(self.progress),
            "config": to_json(self.config),
            "total": self.total,
            "base": self.base,
        }

    def _read(self, checkpoints: Checkpoints, step: int) -> tuple[State, dict[str, Any], Progress]:
        """What a checkpoint holds: the state, what was saved beside it, and the progress in it."""
        meta = checkpoints.meta(step)
        refuse_differences(str(self.workdir), from_json(meta["config"]), self.config, extend=True)
        require_same(self.workdir, meta["base"], self.run_.folder, self.base)
        self.before = length_before(self.workdir, meta, self.total)
        shapes = self.recipe.state_shapes(self.run_.trainable, self.mesh, step)
        free(self.run_.trainable)  # which come from the checkpoint
        return checkpoints.restore(step, shapes), meta, Progress(**meta["progress"])

    def _finish(self, checkpoints: Checkpoints, state: State, records: Records) -> dict[str, Any]:
        """The test split once, on the best; and the result."""
        progress, step, params = self.progress, int(state.step), state.best_params
        notes: list[str] = []
        if progress.best_step < 0:  # no validation split: the last is all there is
            progress.best_step = step
        free(state.opt_state)
        if progress.best_step != step:
            shapes = jax.tree.map(to_shape_dtype_struct, params)
            free((state.params, state.average))
            params, notes = best(checkpoints, progress, shapes, self._judge)
        for note in notes:
            records.say(note)
        records.keep()
        answered = [self._answered(params, name) for name in HELD_OUT if name in self.splits]
        result = partial(
            write_result,
            self.workdir,
            self.run_,
            progress,
            answered[-1].scores if "test" in self.splits else None,
            steps=step,
            epochs=self._epochs(step),
            cached_frozen=self.cached,
            **({"notes": notes} if notes else {}),
            **({} if self.stream is None else self.stream.counts),
            **self.run_.tuned.method.report(self.run_.tuned.base, params),
        )
        if answered and is_written(self.run_):
            result(**{PENDING: ["what is written"]})  # kept, whatever comes of that
            write_texts(self.run_, params, answered[-1], self.generator)
        place = (self.workdir, self.run_.task, self.names, self.metric)
        for doubt in (doubts := end(*place, answered)):
            records.say(f"warning: {doubt}")
        return result(warnings=[*of_data(self.names, self.data.report), *doubts])

    def _answered(self, params: Flat, name: str) -> Answered:
        """A held-out split with what the best parameters say of it; nothing is written yet."""
        run, split = self.run_, self.raw[name]
        layout = self.test_layout if name == "test" else self.eval_layout
        outputs, scores = self._outputs(params, name, layout), self.progress.validation
        if name == "test":
            scores = run.task.score(outputs, self.splits[name], split, self.names)
        return Answered(name, split, self.splits[name], outputs, scores, {})
