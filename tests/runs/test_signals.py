"""A second Ctrl-C leaves at once, also while a program runs that cannot be interrupted."""

import signal
import subprocess
import sys

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
