"""Four processes of two devices, over loopback, against one of eight; and when one is lost."""

import os
import random
import shutil
import signal
import socket
import time
from contextlib import suppress

import numpy as np

from ftjax.training.checkpoints import Checkpoints
from ftjax.training.records import read_rows
from tests.conftest import environment
from tests.forked import Forked

OVERRIDES = [
    "--config.train.steps=12",
    "--config.train.eval_every=6",
    "--config.train.checkpoint_every=2",
    "--config.train.log_every=1",
    "--config.data.batching=pack",
    "--config.mesh.data=2",
    "--config.mesh.fsdp=4",
]


def free_port():
    """Below those that the system gives to others, which could take it before it is bound."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket() as tried, suppress(OSError):
            tried.bind(("localhost", port))
            return port
    raise OSError("no port is free")


def start(config_file, workdir, processes):
    """A run of eight devices in as many processes."""
    port = free_port()
    command = ["train", "--config", config_file, "--workdir", workdir, *OVERRIDES]
    started = []
    for number in range(processes):
        hosts = {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(processes),
            "JAX_PROCESS_ID": str(number),
        }
        env = environment(8 // processes) | (hosts if processes > 1 else {})
        started.append(Forked(command, env, together=True))
    return started


def ended(processes):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


def final(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints")
    params = checkpoints.params(12, None)
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


def test_four_processes_equal_one_and_fewer_go_on_when_one_is_lost(config_file, tmp_path):
    """In one test, since runs of several processes keep all cores."""
    ended(start(config_file, tmp_path / "alone", 1))
    alone = final(tmp_path / "alone")
    outputs = ended(start(config_file, tmp_path / "four", 4))
    same(final(tmp_path / "four"), alone)
    assert all("step" not in output for output in outputs[1:])  # one of them speaks
    workdir = tmp_path / "lost"
    lose_one(config_file, workdir)
    for fewer in (2, 1):
        left = tmp_path / f"{fewer}"
        shutil.copytree(workdir, left)
        said = "".join(ended(start(config_file, left, fewer)))
        assert "resumed at step" in said
        same(final(left), alone)


def lose_one(config_file, workdir):
    """Kills one of four processes: the others stop, and say why."""
    processes = start(config_file, workdir, 4)
    deadline = time.time() + 200
    while not any(row["step"] >= 5 for row in read_rows(workdir / "metrics.jsonl")):
        stopped = [process for process in processes if process.poll() is not None]
        assert not stopped, [(p.returncode, p.communicate()[0]) for p in stopped]
        assert time.time() < deadline
        time.sleep(0.01)
    os.kill(processes[2].pid, signal.SIGKILL)
    lost = time.time()
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert time.time() - lost < 60
    for number in (0, 1, 3):
        assert processes[number].returncode not in (0, None)
        # Ours, or JAX's, where its own thread hears of it first
        said = outputs[number]
        assert "was lost" in said or "another task died" in said or "heartbeat" in said, said
