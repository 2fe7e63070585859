"""What launches on GPUs sets XLA's flags, and they are such as the installed jaxlib knows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "scripts" / "launch"
ON_GPUS = ("slurm.sh", "sky.yaml", "Dockerfile.gpu")


def flags(file):
    return re.findall(r"--xla_\S+?(?=[\s\"']|$)", (LAUNCH / file).read_text())


def read_by_jaxlib(given):
    """XLA reads its flags with the first options, and ends the process at one it does not know."""
    ask = "from jaxlib import _jax; options = _jax.CompileOptions(); "
    ask += "build = options.executable_build_options; build.debug_options"
    environment = {**os.environ, "XLA_FLAGS": " ".join(given)}
    return subprocess.run(
        [sys.executable, "-c", ask], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("file", ON_GPUS[1:])
def test_every_launch_sets_the_same(file):
    assert flags(file) == flags(ON_GPUS[0])


def test_they_are_known():
    wanted = flags(ON_GPUS[0])
    assert "--xla_gpu_enable_latency_hiding_scheduler=true" in wanted
    assert read_by_jaxlib(wanted).returncode == 0
    gone = read_by_jaxlib(["--xla_gpu_enable_async_collectives=true"])
    assert gone.returncode and "Unknown flag" in gone.stderr


def test_a_users_own_flags_stay_and_come_last():
    """The last of two of the same name counts."""
    export = re.search(r'export XLA_FLAGS="[^"]*"', (LAUNCH / "slurm.sh").read_text())[0]
    said = subprocess.run(
        ["bash", "-c", f'set -eu\n{export}\nprintf %s "$XLA_FLAGS"'],
        env={**os.environ, "XLA_FLAGS": "--xla_own=1"}, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert said == [*flags("slurm.sh"), "--xla_own=1"]
