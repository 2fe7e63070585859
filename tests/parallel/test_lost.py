"""What one of several processes says when it cannot go on, and what becomes of the others."""

import jax
import jax.numpy as jnp
import pytest

from ftjax.errors import UserError
from ftjax.parallel.hosts import LOST, lost
from tests.parallel.processes import start

OVERRIDES = ["--config.train.steps=6", "--config.train.log_every=1", "--config.mesh.fsdp=2"]


def test_an_error_of_one_is_told_by_it_and_ends_the_other(config_file, tmp_path):
    command = ["train", "--config", config_file, "--workdir", tmp_path / "work", *OVERRIDES]
    calls = {1: "tests.parallel.failing:main"}
    other, own = start(command, 2, devices=2, calls=calls)
    said = own.communicate(timeout=300)[0]
    assert own.returncode == 1, said
    assert "Traceback" in said and "Out of memory" in said and "place_rows" in said
    assert "was lost" not in said
    said = other.communicate(timeout=300)[0]
    assert other.returncode not in (0, 1, 2), said
    if other.returncode == LOST:  # else by JAX, whose own thread heard of it first
        assert "Traceback" not in said and "was lost" in said


def test_an_error_without_others_is_as_it_was():
    """Of JAX itself: that memory is short, and that none answers where others should be."""
    with pytest.raises(jax.errors.JaxRuntimeError) as short:
        jnp.zeros(1 << 48, jnp.int8).block_until_ready()
    assert not lost(short.value)
    wrapped = UserError("a checkpoint could not be written")
    wrapped.__cause__ = RuntimeError("DEADLINE_EXCEEDED: Barrier timed out. Id: 7")
    assert "Barrier timed out" in lost(wrapped)
