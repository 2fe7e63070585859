"""Products of grouped rows equal torch's, row by row, with their gradients."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from flax import linen as nn

from ftjax.models.experts import Experts
from ftjax.models.grouped_matmul import grouped_matmul
from ftjax.models.layers import Options
from ftjax.parallel.mesh import logical_axes, make_mesh

SIZE, OUT = 12, 7
CASES = {
    "uneven": (5, 0, 17, 1),
    "one row": (0, 1, 0),
    "all of one": (0, 0, 40),
    "none": (0, 0),
    "more groups than rows": (1, 0, 0, 0, 0, 2, 0, 0, 0),
    "several blocks": (300, 3, 270),
}


@pytest.mark.parametrize("past", [0, 3])
@pytest.mark.parametrize("case", CASES)
def test_equals_a_product_a_row(case, past):
    sizes, random = np.array(CASES[case], np.int32), np.random.default_rng(0)
    count = sizes.sum()
    x = random.normal(size=(count + past, SIZE)).astype(np.float32)
    kernel = random.normal(size=(len(sizes), SIZE, OUT)).astype(np.float32)
    slopes = random.normal(size=(count, OUT)).astype(np.float32)

    @jax.jit
    def graded(x, kernel, sizes):
        y, back = jax.vjp(lambda x, kernel: grouped_matmul(x, kernel, sizes)[:count], x, kernel)
        return y, *back(slopes)

    rows, weights = (torch.tensor(y, requires_grad=True) for y in (x, kernel))
    each = weights[torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))]
    wanted = torch.einsum("ri,rio->ro", rows[:count], each)
    wanted.backward(torch.tensor(slopes))
    found = graded(x, kernel, sizes)
    for ours, peer in zip(found, (wanted.detach(), rows.grad, weights.grad), strict=True):
        np.testing.assert_allclose(ours, peer, atol=1e-4)


def test_no_row_is_multiplied_by_all():
    """On CPUs, where XLA's own product does so: no array has rows and groups."""
    x = jax.ShapeDtypeStruct((128, SIZE), np.float32)
    kernel = jax.ShapeDtypeStruct((16, SIZE, OUT), np.float32)
    sizes = jax.ShapeDtypeStruct((16,), np.int32)

    def largest(function):
        return jax.jit(function).lower(x, kernel, sizes).compile().memory_analysis()

    ours, whole = (largest(f).temp_size_in_bytes for f in (grouped_matmul, jax.lax.ragged_dot))
    assert ours < 128 * 16 * OUT * 4 <= whole


def test_nor_where_devices_hold_experts():
    config = SimpleNamespace(hidden_act="silu", experts=16, active=2, initializer_range=0.1)
    config.options, config.dropout = Options(), 0.0
    config.hidden_size, config.intermediate_size = SIZE, 4 * SIZE
    layer, x = Experts(config), jax.ShapeDtypeStruct((8, 64, SIZE), np.float32)
    shapes = nn.unbox(jax.eval_shape(layer.init, jax.random.key(0), x))
    with logical_axes(make_mesh(2, 2, 1, expert=2)):
        step = jax.jit(jax.grad(lambda params, x: layer.apply(params, x).sum()))
        used = step.lower(shapes, x).compile().memory_analysis().temp_size_in_bytes
    rows = 2 * (8 // 2) * 64  # that a device has, of the experts that it has
    assert used < rows * 8 * 4 * SIZE * 4
