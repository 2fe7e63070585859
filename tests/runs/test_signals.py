"""A second Ctrl-C leaves at once, also while a program runs that cannot be interrupted; a first is
heard also where Python drops it."""

import gc
import os
import signal
import subprocess
import sys

import pytest

from ftjax.config import load_config
from ftjax.runs import train
from tests.conftest import environment

WAITS = """
import jax
from ftjax.training.signals import stop_signal
loop = lambda x: jax.lax.while_loop(lambda x: x < 1, lambda x: x * 0, x)
endless = jax.jit(loop).lower(0.0).compile()
with stop_signal(0) as stopping:
    assert stopping(1) == 0
    print("waits", flush=True)
    jax.block_until_ready(endless(0.0))
"""


def test_the_second_interrupt_ends_what_waits_for_a_program():
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout.readline() == "waits\n", process.communicate()[1]
    process.send_signal(signal.SIGINT)
    while "again leaves at once" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in process.stderr.read()


@pytest.mark.usefixtures("first_device", "heard")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_comes_while_garbage_is_collected_ends_the_run(config_file, tmp_path, monkeypatch):
    """Before training: Python drops what a callback of the collection raises, as of JAX's."""
    config = load_config(f"{config_file}:head", ["--config.train.steps=2"])
    before, begin = signal.getsignal(signal.SIGINT), train.begin

    def send(phase, _):
        if phase == "stop":
            os.kill(os.getpid(), signal.SIGINT)

    def begun(*given):
        gc.callbacks.append(send)
        gc.collect()
        gc.callbacks.remove(send)
        return begin(*given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "begin", begun)
        train.train(config, tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
    assert not [*(tmp_path / "run").glob("checkpoints/[0-9]*")]
    assert train.train(config, tmp_path / "run")["steps"] == 2
