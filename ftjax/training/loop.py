"""The training run: batches through compiled steps, evaluation, checkpoints, exact resume."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from ftjax import tasks
from ftjax.config import from_json, to_json
from ftjax.data.loading import Loader
from ftjax.data.planning import Layout
from ftjax.errors import UserError
from ftjax.formats.folder import fingerprint, locate, require_same
from ftjax.loss import Loss
from ftjax.parallel.mesh import local_rows, logical_axes, place_rows
from ftjax.partition import FROZEN
from ftjax.paths import Flat
from ftjax.training.checkpoints import Checkpoints
from ftjax.training.evaluate import Forward, cache_features, score
from ftjax.training.optimizers import carry, make_optimizer, schedule
from ftjax.training.progress import Progress
from ftjax.training.records import Records, write_json
from ftjax.training.result import write_result
from ftjax.training.run import (
    Data,
    Run,
    best_metric,
    choose_layout,
    open_workdir,
    place_model,
    read_data,
    refuse_differences,
    write_labels,
)
from ftjax.training.step import State, compile_step, init_moments, init_state, make_step
from ftjax.tuned import Tuned


def train(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Trains, or goes on where an earlier run in `workdir` stopped.

    Returns:
        The result that result.json holds; None when SIGTERM stopped the run, after saving.

    Raises:
        UserError: bad input, a work folder of another configuration, or a loss that is not
            finite.
    """
    folder, task = locate(config.model.path), tasks.create(config.task)
    data = read_data(config, task, folder)
    open_workdir(workdir, config)
    run = place_model(config, data.names)
    write_labels(workdir, data.names)
    write_json(workdir / "data_report.json", data.report)
    return _Training(run, data, workdir).run()


class _Training:
    """One run of one configuration in one work folder."""

    def __init__(self, run: Run, data: Data, workdir: Path) -> None:
        self.run_, self.workdir, self.names = run, workdir, data.names
        self.config, self.mesh, self.splits = run.config, run.mesh, data.splits
        settings, self.progress = self.config.train, Progress()
        lengths = np.concatenate([examples.lengths for examples in self.splits.values()])
        layout = choose_layout(self.config, self.mesh, lengths, settings.batch_size)
        self.eval_layout = layout.scaled(settings.eval_batch_size / settings.batch_size)
        self.forward = Forward(run.tuned, self.mesh, settings.eval_batch_size)
        self.test_layout = self.eval_layout
        start = time.perf_counter()
        self.cached = bool(settings.cache_frozen and run.tuned.only_head_trains)
        if self.cached:
            self._cache_features()
            layout = self.eval_layout = Layout((int(lengths.max()),))
        self.feature_seconds = time.perf_counter() - start - self.progress.compile_seconds
        self.loader = Loader(
            self.splits["train"],
            settings.batch_size,
            layout,
            self.config.seed,
            partial(local_rows, self.mesh),
        )
        per_epoch = self.loader.steps_per_epoch
        self.total = settings.steps or settings.epochs * per_epoch
        self.eval_every = settings.eval_every or per_epoch
        self.save_every = settings.checkpoint_every or self.eval_every
        self.metric = best_metric(self.config, run.task)
        self.rate = schedule(
            self.config.optimizer.schedule,
            self.config.optimizer.learning_rate,
            self.config.optimizer.warmup,
            self.total,
        )
        self.rates = run.tuned.rates()

    def _cache_features(self) -> None:
        run = self.run_
        forward = Forward(run.tuned, self.mesh, self.config.train.eval_batch_size, True)
        for name, examples in self.splits.items():
            if name != "test":  # the test split is run once, at the end, in full
                self.splits[name] = cache_features(
                    forward, run.trainable, run.frozen, examples, self.eval_layout
                )
        self.progress.compile_seconds += forward.compile_seconds

    def run(self) -> dict[str, Any] | None:
        run, settings = self.run_, self.config.train
        checkpoints = Checkpoints(self.workdir / "checkpoints", settings.keep)
        self.base = fingerprint(run.folder)
        iterator = self.loader.iterate(self.total)
        latest = checkpoints.latest()
        phase = self._phase(latest or 0)
        optimizer, seed = self._optimizer(phase), self.config.seed
        state = init_state(run.trainable, optimizer, seed, self.mesh, phase.partition)
        if latest is not None:
            state = self._resume(checkpoints, latest, state, iterator)
        elif self.cached:
            self.progress.seconds += self.feature_seconds
        step = int(state.step)
        main = jax.process_index() == 0
        records = Records(self.workdir, step, self.total, main)
        try:
            self._announce(records, step)
            with _stop_signal() as stop:
                state, stopped = self._loop(state, iterator, checkpoints, records, stop)
            if stopped:
                records.say(
                    f"stopped by SIGTERM at step {int(state.step)}: saved; run the same "
                    "command to go on"
                )
                return None
            if self.progress.best is not None:
                records.say(
                    f"best validation {self.metric} {self.progress.best:.4f} "
                    f"at step {self.progress.best_step}"
                )
            return self._finish(checkpoints, state)
        finally:
            records.close()
            checkpoints.close()

    def _announce(self, records: Records, step: int) -> None:
        run = self.run_
        trainable, total = run.tuned.partition.counts(run.tuned.shapes)
        records.say(
            f"{self.config.method.name}: {trainable:,} of {total:,} parameters train "
            f"({trainable / total:.2%}); {len(self.splits['train']):,} examples, "
            f"{self.total:,} steps, lengths {', '.join(map(str, self.loader.layout.lengths))}"
        )
        if run.absent:
            records.say(f"not in {run.folder.name}, initialized: {', '.join(run.absent)}")
        for name, examples in self.splits.items():
            if examples.truncated:
                records.say(
                    f"{name}: {examples.truncated} of {len(examples)} texts are longer than "
                    f"data.max_length={self.config.data.max_length} tokens and were truncated"
                )
        if step:
            records.say(f"resumed at step {step}")

    def _phase(self, done: int) -> Tuned:
        """What the last of `done` steps was made by, which the optimizer state is of."""
        return self.run_.tuned.at_step(max(done - 1, 0))

    def _optimizer(self, phase: Tuned) -> optax.GradientTransformationExtraArgs:
        labels = {path: g for path, g in phase.partition.labels.items() if g != FROZEN}
        settings = self.config.optimizer
        return make_optimizer(settings, labels, self.rate, phase.method, self.rates, self.total)

    def _step(self, phase: Tuned) -> Callable:
        """The step of a phase as a pure function, not yet compiled."""
        run = self.run_

        def loss_fn(params: Flat, batch: Mapping[str, jax.Array], key: Any) -> Loss:
            return run.task.loss(run.tuned.apply(params, batch, key), batch, train=True)

        return make_step(
            loss_fn,
            self._optimizer(phase),
            self.rate,
            clip_norm=self.config.optimizer.clip_norm,
            accumulation=self.config.train.accumulation,
            penalty=run.tuned.method.penalty,
            active=phase.partition,
        )

    def _compile(self, step: Callable, state: State, batch: Mapping[str, Any]) -> Any:
        """The program for a batch's shapes, made when they first come."""
        start = time.perf_counter()
        with logical_axes(self.mesh):
            program = compile_step(step, state, self.run_.frozen, batch, self.mesh)
        self.progress.compile_seconds += time.perf_counter() - start
        return program

    def _loop(
        self,
        state: State,
        iterator: Any,
        checkpoints: Checkpoints,
        records: Records,
        stop: list[bool],
    ) -> tuple[State, bool]:
        settings, progress, frozen = self.config.train, self.progress, self.run_.frozen
        step, loader = int(state.step), self.loader
        pending: list[tuple[int, Any]] = []
        programs: dict[tuple, Any] = {}
        phase = self._phase(step)
        mark = time.perf_counter()

        def flush(log: bool = False) -> None:
            """Waits for the device, checks and counts what is pending, and logs a row."""
            nonlocal mark
            if not pending:
                return
            rows = [(at, {k: float(v) for k, v in m.items()}) for at, m in pending]
            elapsed = time.perf_counter() - mark
            for at, row in rows:
                if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                    kept = checkpoints.latest()
                    raise UserError(
                        f"loss is {row['loss']}, gradient norm {row['grad_norm']} at step {at}: "
                        f"stopped; the last good checkpoint is "
                        f"{'none' if kept is None else f'step {kept}'}. A lower "
                        "optimizer.learning_rate or clip_norm may help"
                    )
            progress.seconds += elapsed
            planned = [loader.planned(at - 1) for at, _ in rows]
            progress.tokens += sum(map(loader.tokens, planned))
            progress.examples += sum(len(batch.examples) for batch in planned)
            progress.losses += [row["loss"] for _, row in rows]
            if log:
                records.log(self._row(*rows[-1]))
            records.advance(len(rows))
            pending.clear()
            mark = time.perf_counter()

        done = settings.early_stopping and progress.worse >= settings.early_stopping
        while step < self.total and not done:
            planned = loader.planned(step)
            batch = place_rows(self.mesh, next(iterator), len(planned.places))
            before, phase = phase, self.run_.tuned.at_step(step)
            if phase is not before and phase.partition.labels != before.partition.labels:
                active = phase.partition.split(state.params)[0]
                fresh = init_moments(active, self._optimizer(phase), self.mesh)
                state = replace(state, opt_state=carry(state.opt_state, fresh, state.step))
            program = (*planned.places.shape, planned.length, id(phase))
            if program not in programs:
                flush()
                programs[program] = self._compile(self._step(phase), state, batch)
                mark = time.perf_counter()
            state, metrics = programs[program](state, frozen, batch)
            step += 1
            pending.append((step, metrics))
            due = step % self.eval_every == 0 or step == self.total
            log = step % settings.log_every == 0 or step == self.total
            if log or due or step % self.save_every == 0 or stop:
                flush(log)
            if due and "validation" in self.splits:
                self._evaluate(state, step, records)
                done = settings.early_stopping and progress.worse >= settings.early_stopping
            if due or step % self.save_every == 0 or stop:
                checkpoints.save(state, self._meta(iterator), progress.best_step)
            if stop:
                checkpoints.wait()
                return state, True
            if due or step % self.save_every == 0:
                mark = time.perf_counter()
        checkpoints.wait()
        return state, False

    def _row(self, step: int, last: Mapping[str, float]) -> dict[str, float]:
        """A row of the log, over the steps since the last one."""
        progress = self.progress
        seconds = max(progress.seconds - progress.logged_seconds, 1e-9)
        row = {
            "step": step,
            "epoch": round(step / self.loader.steps_per_epoch, 4),
            "loss": float(np.mean(progress.losses)),
            "learning_rate": last["learning_rate"],
            "grad_norm": last["grad_norm"],
            "tokens_per_second": (progress.tokens - progress.logged_tokens) / seconds,
            "examples_per_second": (progress.examples - progress.logged_examples) / seconds,
        }
        progress.logged_seconds, progress.losses = progress.seconds, []
        progress.logged_tokens, progress.logged_examples = progress.tokens, progress.examples
        return row

    def _evaluate(self, state: State, step: int, records: Records) -> None:
        """Validates, and notes whether this is the best so far."""
        found = self._score(state.params, "validation", self.eval_layout)
        best_metric(self.config, self.run_.task, found)
        self.progress.judge(found, self.metric, step)
        numbers = {f"validation/{k}": v for k, v in found.items() if isinstance(v, float)}
        records.log({"step": step, **numbers})
        value, loss = found[self.metric], found["loss"]
        records.say(f"step {step}: validation {self.metric} {value:.4f}, loss {loss:.4f}")

    def _score(self, params: Flat, split: str, layout: Layout) -> dict[str, Any]:
        examples, before = self.splits[split], self.forward.compile_seconds
        outputs = self.forward(params, self.run_.frozen, examples, layout)
        self.progress.compile_seconds += self.forward.compile_seconds - before
        return score(self.run_.task, outputs, examples, self.names)

    def _meta(self, iterator: Any) -> dict[str, Any]:
        state = iterator.get_state()
        return {
            "data": state,
            "progress": asdict(self.progress),
            "config": to_json(self.config),
            "base": self.base,
        }

    def _resume(self, checkpoints: Checkpoints, step: int, state: State, iterator: Any) -> State:
        meta = checkpoints.meta(step)
        refuse_differences(str(self.workdir), from_json(meta["config"]), self.config)
        require_same(self.workdir, meta["base"], self.run_.folder, self.base)
        self.progress = Progress(**meta["progress"])
        iterator.set_state(meta["data"])
        return checkpoints.restore(step, state)

    def _finish(self, checkpoints: Checkpoints, state: State) -> dict[str, Any]:
        """The test split once, on the best; and the result."""
        progress, step, params = self.progress, int(state.step), state.params
        if progress.best_step < 0:  # no validation split: the last is all there is
            progress.best_step = step
        if progress.best_step != step:
            params = checkpoints.params(progress.best_step, params)
        tested = "test" in self.splits
        test = self._score(params, "test", self.test_layout) if tested else None
        return write_result(
            self.workdir,
            self.run_,
            progress,
            test,
            steps=step,
            epochs=step / self.loader.steps_per_epoch,
            cached_frozen=self.cached,
            **self.run_.tuned.method.report(params),
        )


@contextmanager
def _stop_signal() -> Iterator[list[bool]]:
    """A list that is non-empty once SIGTERM has come."""
    came: list[bool] = []
    try:
        old = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    except ValueError:  # not in the main thread: signals are the caller's
        yield came
        return
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, old)
