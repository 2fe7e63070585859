"""Distances fall into the reference's buckets, every one of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
from transformers.models.t5.modeling_t5 import T5Attention

from ftjax.models import configure, deberta, t5
from ftjax.models.layers import Options
from tests.models.random_models import build, config_of, inputs, parameters, quick

FARTHEST = 1023


@pytest.mark.parametrize(
    ("buckets", "most"), [(256, 512), (4, 16), (32, 512), (256, 1024), (64, 128), (128, 500)]
)
def test_deberta(buckets, most):
    hf = {**config_of("deberta-v3"), "position_buckets": buckets, "max_relative_positions": most}
    attention = deberta.Attention(configure(hf, Options()), parent=None)
    distance = torch.arange(-FARTHEST, FARTHEST + 1)
    bucket = make_log_bucket_position(distance, buckets, most).to(torch.int64)
    wanted = torch.clamp(bucket + buckets, 0, 2 * buckets - 1).numpy()  # as attention looks it up
    rows = np.asarray(attention.index(FARTHEST + 1, None))[0]
    rows = rows + deberta.rows_of(attention.config, FARTHEST + 1)[0]
    found = np.concatenate([rows[0, :0:-1], rows[:, 0]])  # of queries left and right of the key
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 6), (32, 100), (64, 1000), (16, 40)])
def test_t5(buckets, most, both):
    distance = torch.arange(-FARTHEST, FARTHEST + 1)
    wanted = T5Attention._relative_position_bucket(distance, both, buckets, most).numpy()
    found = np.asarray(t5.bucket(jnp.asarray(distance.numpy()), buckets, most, both))
    np.testing.assert_array_equal(found, wanted)


def test_rows_that_no_distance_reaches_take_no_part():
    """They are not multiplied: what is not a number there leaves values and gradients alone."""
    model = build("deberta-v3", "tokens", segments="scan")
    params, batch = parameters(model), inputs("deberta-v3", length=4)
    table = "encoder/distances/embedding"
    rows = deberta.rows_of(model.config, 4)
    outside = np.setdiff1d(np.arange(len(params[table])), rows)
    assert len(outside) and sorted(set(rows)) == list(range(rows[0], rows[-1] + 1))
    holes = {**params, table: params[table].copy()}
    holes[table][outside] = np.nan

    @quick
    def graded(params):
        def loss(params):
            logits = model.apply(params, batch)
            return (logits**2).sum(), logits

        return jax.grad(loss, has_aux=True)(params)

    (wanted, logits), (grads, found) = graded(params), graded(holes)
    np.testing.assert_array_equal(found, logits)
    for path, grad in wanted.items():
        np.testing.assert_array_equal(grads[path], grad, err_msg=path)
