"""SIGTERM to one of two processes that are not training: before the first step, and after the last."""

import json
import signal
import time

from jax._src import distributed

from ftjax.parallel.hosts import End
from tests.parallel.processes import ended, start

SHORT = ["--config.train.steps=2", "--config.train.eval_every=2", "--config.mesh.data=2"]


def stopped(command, place, number):
    """What both wrote, where one got a signal once both had come to a place of the run."""
    folder = command[-1].parent
    running = start([*command[:3], *SHORT, *command[3:]], 2, 2, dict.fromkeys(range(2), place))
    marks = [folder / f"waits_{n}" for n in range(2)]
    while not all(mark.exists() for mark in marks):
        assert all(process.poll() is None for process in running), ended(running)
        time.sleep(0.05)
    for mark in marks:
        mark.unlink()
    running[number].send_signal(signal.SIGTERM)
    return ended(running, {143})


def test_all_end_and_the_same_command_goes_on(config_file, tmp_path):
    workdir = tmp_path / "run"
    command = ["train", "--config", config_file, "--workdir", workdir]
    said, _ = stopped(command, "tests.parallel.waiting:preparing", 1)
    assert "stopped by SIGTERM" in said and not (workdir / "checkpoints").exists()
    said, _ = stopped(command, "tests.parallel.waiting:testing", 0)
    assert "stopped by SIGTERM" in said and (workdir / "checkpoints" / "2").is_dir()
    assert not (workdir / "result.json").exists()
    said, _ = ended(start([*command, *SHORT], 2, 2))
    assert "resumed at step 2" in said
    assert json.loads((workdir / "result.json").read_text())["metrics"]["test"]["examples"] == 40


def test_nothing_is_waited_for_where_others_have_shut_down_what_tells():
    assert distributed.global_state.client is None
    End()._wait()
