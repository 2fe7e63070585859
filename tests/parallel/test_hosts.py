"""Processes over loopback: four against one, when one is lost, and when they are to stop."""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import numpy as np
import pytest

from ftjax.workdir.checkpoints import Checkpoints
from ftjax.workdir.records import read_rows
from tests.conftest import ftjax
from tests.parallel import processes
from tests.parallel.processes import ended

OVERRIDES = [
    "--config.train.steps=12",
    "--config.train.eval_every=6",
    "--config.train.checkpoint_every=4",
    "--config.train.log_every=1",
    "--config.data.batching=pack",
    "--config.mesh.data=2",
    "--config.mesh.fsdp=4",
]


def start(config_file, workdir, count, devices=8, overrides=OVERRIDES, calls=None):
    """A run of so many devices in as many processes."""
    command = ["train", "--config", config_file, "--workdir", workdir, *overrides]
    return processes.start(command, count, devices, calls)


def final(workdir, step=12):
    checkpoints = Checkpoints(workdir / "checkpoints")
    params = checkpoints.params(step, None)
    checkpoints.close()
    rows = read_rows(workdir / "metrics.jsonl")
    numbers = [
        {k: v for k, v in row.items() if not k.endswith(("per_second", "input_wait"))}
        for row in rows
    ]
    return numbers, params


def same(found, wanted):
    (rows, params), (wanted_rows, wanted_params) = found, wanted
    assert [row.keys() for row in rows] == [row.keys() for row in wanted_rows]
    for row, other in zip(rows, wanted_rows, strict=True):
        np.testing.assert_allclose(list(row.values()), list(other.values()), rtol=1e-5, atol=1e-5)
    for path, leaf in wanted_params.items():
        if not path.endswith("key/bias"):  # of gradient 0, whose rounding Adam makes steps of
            np.testing.assert_allclose(params[path], leaf, rtol=1e-5, atol=1e-5, err_msg=path)


@pytest.fixture(scope="module")
def alone(config_file, tmp_path_factory):
    """What one process of eight devices comes to."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    ftjax("train", "--config", config_file, "--workdir", workdir, *OVERRIDES, devices=8)
    return final(workdir)


@pytest.mark.product
def test_four_processes_equal_one(config_file, alone, tmp_path):
    """By default the next test says so of two until one is lost, and of one from there."""
    outputs = ended(start(config_file, tmp_path / "four", 4))
    same(final(tmp_path / "four"), alone)
    assert all("step" not in output for output in outputs[1:])  # one of them speaks


@pytest.mark.parametrize(
    ("count", "fewer"),
    [
        pytest.param(2, (1,), id="two"),
        pytest.param(4, (2, 1), id="four", marks=pytest.mark.product),
    ],
)
def test_fewer_go_on_when_one_is_lost_and_equal_one(config_file, alone, tmp_path, count, fewer):
    """Rows of the steps of all, and of those of fewer."""
    workdir = tmp_path / "lost"
    lose_one(config_file, workdir, count)
    for left_over in fewer:
        left = tmp_path / f"{left_over}"
        shutil.copytree(workdir, left)
        first, *others = ended(start(config_file, left, left_over))
        assert "resumed at step" in first and all("step" not in output for output in others)
        same(final(left), alone)


def logged(running, workdir, step):
    """Returns once the run has logged a step."""
    deadline = time.time() + 600
    while not any(row["step"] >= step for row in read_rows(workdir / "metrics.jsonl")):
        stopped = [process for process in running if process.poll() is not None]
        assert not stopped, [(p.returncode, p.communicate()[0]) for p in stopped]
        assert time.time() < deadline
        time.sleep(0.01)


STEPS = 40
LONG = [
    f"--config.train.steps={STEPS}",
    f"--config.train.eval_every={STEPS // 2}",
    "--config.train.keep=2",
    "--config.train.log_every=1",
    "--config.data.batching=pad",
    "--config.mesh.fsdp=2",
]
ALL_AT_ONCE = [(signal.SIGTERM, None, 0.2)]
ONE_ALONE = [(signal.SIGINT, -1, 0.0)]
ONE_LATER = [(signal.SIGTERM, None, 5.0)]


@pytest.mark.parametrize(
    ("count", "stops"),
    [
        pytest.param(2, ALL_AT_ONCE + ONE_ALONE, id="two"),
        pytest.param(4, ONE_LATER, id="four", marks=pytest.mark.product),
    ],
)
def test_signals_stop_all_at_one_step(config_file, tmp_path, count, stops):
    """Sent to all, so many seconds apart, or to one; gone on with, the run equals a whole one.

    Of two, also where what one host finds damaged is set aside for all.
    """

    def run(workdir, calls=None):
        return start(config_file, workdir, count, count, LONG, calls)

    whole, workdir, last = tmp_path / "whole", tmp_path / "stopped", 0
    ended(run(whole))
    for sent, number, apart in stops:
        running = run(workdir, dict.fromkeys(range(count), "tests.parallel.slow:main"))
        logged(running, workdir, last + 1)
        for process in running if number is None else [running[number]]:
            process.send_signal(sent)
            with suppress(subprocess.TimeoutExpired):
                process.wait(apart)
        outputs = ended(running, {143} if sent == signal.SIGTERM else {143, 130})
        checkpoints = Checkpoints(workdir / "checkpoints")
        step, last = last, checkpoints.latest()
        checkpoints.close()
        assert step < last < STEPS and f"stopped by SIGTERM at step {last}" in outputs[0]
    set_aside = damaged(workdir / "checkpoints") if count == 2 else []
    said = ended(run(workdir))[0]
    assert all(message in said for message in set_aside), said
    (_, wanted), (_, params) = final(whole, STEPS), final(workdir, STEPS)
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(params[path], leaf, err_msg=path)


def damaged(folder):
    """Cuts the parts of the newest checkpoint that one host alone reads; what all then say."""
    before, newest = sorted(int(path.name) for path in folder.iterdir())[-2:]
    for file in (folder / f"{newest}").rglob("ocdbt.process_1/d/*"):
        file.write_bytes(file.read_bytes()[:10])
    aside = f"it is set aside as {folder / str(newest)}.unreadable"
    return [aside, f"resumed at step {before}\n"]


def lose_one(config_file, workdir, count):
    """Kills one of the processes, not the first: the others stop, and say why."""
    running, killed = start(config_file, workdir, count), count // 2
    logged(running, workdir, 5)
    while not (workdir / "checkpoints" / "4").exists():  # it is written while steps go on
        time.sleep(0.01)
    os.kill(running[killed].pid, signal.SIGKILL)
    lost = time.time()
    outputs = [process.communicate(timeout=300)[0] for process in running]
    assert time.time() - lost < 60
    for number in {*range(count)} - {killed}:
        assert running[number].returncode not in (0, None)
        # Ours, or JAX's, where its own thread hears of it first
        said = outputs[number]
        assert "was lost" in said or "another task died" in said or "heartbeat" in said, said
