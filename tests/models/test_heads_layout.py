"""How TPUs lay heads out between projection and attention: from programs compiled for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.forecast.hlo import summarize
from ftjax.forecast.topologies import devices_of
from ftjax.models.layers import RMSNorm
from ftjax.models.rotary import Rotary, laid_out, rotate
from ftjax.parallel.platform import PLATFORM
from tests.forecast.abstract import needs_libtpu

ROWS, LENGTH, HEADS, SIZE = 4, 2048, 16, 128


def heads_of(x, kernel, scale):
    """Projected, normalized and rotated: (rows, heads, length, size), as a kernel reads them."""
    (heads,) = laid_out((x @ kernel).reshape(*x.shape[:-1], -1, SIZE))
    heads = RMSNorm().apply({"params": {"scale": scale}}, heads)
    table = Rotary(1e4, SIZE).table(jnp.arange(x.shape[1])[None])
    return rotate(heads, table).transpose(0, 2, 1, 3)


def bytes_moved(platform: str) -> float:
    """Of the program for one chip, traced as for a platform."""
    _, devices = devices_of("v5e:1x1", 1)
    place = jax.sharding.SingleDeviceSharding(devices[0])
    shapes = (ROWS, LENGTH, 1024), (1024, HEADS * SIZE), (SIZE,)
    given = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in shapes]
    with PLATFORM(platform):
        text = jax.jit(heads_of).lower(*given).compile().as_text()
    return summarize(text, None).moved


@needs_libtpu
def test_heads_are_laid_out_in_sixteen_bits():
    """By hand: what is given is read, heads are written, read and written; no float32 of them."""
    given = 2 * (ROWS * LENGTH * 1024 + 1024 * HEADS * SIZE + SIZE)
    assert bytes_moved("tpu") <= given + 3 * 2 * ROWS * LENGTH * HEADS * SIZE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_the_same(dtype):
    rng = np.random.default_rng(0)
    shapes = (2, 5, 8), (8, 2 * SIZE), (SIZE,)
    given = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]

    def both(platform):
        with PLATFORM(platform):
            return jax.value_and_grad(lambda *args: jnp.square(heads_of(*args)).sum(), (0, 1, 2))(
                *given
            )

    jax.tree.map(np.testing.assert_array_equal, both(""), both("tpu"))
