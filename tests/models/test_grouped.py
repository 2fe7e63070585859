"""Products of grouped rows equal torch's, row by row, with their gradients."""

import jax
import numpy as np
import pytest
import torch

from ftjax.models.grouped import grouped

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
        y, back = jax.vjp(lambda x, kernel: grouped(x, kernel, sizes)[:count], x, kernel)
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

    ours, whole = (largest(f).temp_size_in_bytes for f in (grouped, jax.lax.ragged_dot))
    assert ours < 128 * 16 * OUT * 4 <= whole
