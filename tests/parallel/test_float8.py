"""Products in 8-bit floats, against the same products of operands that ml_dtypes rounds."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.parallel.float8 import FLOAT8, LEAST, float8_matmul, scaled
from ftjax.parallel.product import rows
from tests.models import random_models

ROWS, SIZE, OUT = LEAST, 2 * LEAST, LEAST


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return scale * values


def rounded(x: np.ndarray, dtype: type) -> np.ndarray:
    """As the format has it, the largest value being the largest there is."""
    scale = np.abs(x).max() / np.float32(ml_dtypes.finfo(dtype).max)
    return (x / scale).astype(dtype).astype(np.float64) * scale


def test_value_and_gradients_are_of_rounded_operands():
    x, y, grad = (
        normal(ROWS, SIZE),
        normal(SIZE, OUT, seed=1, scale=1e-3),
        normal(ROWS, OUT, seed=2),
    )
    value, pullback = jax.vjp(float8_matmul, x, y)
    dx, dy = pullback(grad)
    left, right = (rounded(z, ml_dtypes.float8_e4m3fn) for z in (x, y))
    back = rounded(grad, ml_dtypes.float8_e5m2)
    for found, wanted in ((value, left @ right), (dx, back @ right.T), (dy, left.T @ back)):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_rounding_is_of_the_formats():
    """Three bits of the fraction are kept: nothing normal is further than 2⁻⁴ from what it was."""
    x = normal(1000)
    kept, scale = scaled(x, jnp.float8_e4m3fn)
    large = np.abs(x) > 2.0**-6 * float(scale)
    error = np.abs(np.asarray(kept, np.float32) * float(scale) - x) / np.abs(x)
    assert error[large].max() <= 2.0**-4 + 1e-6 and large.mean() > 0.99
    zeros, one = scaled(np.zeros(3, np.float32), jnp.float8_e5m2)
    assert not np.asarray(zeros, np.float32).any() and one == 1


@pytest.mark.parametrize(
    ("shape", "is_rounded"), [((ROWS, SIZE), True), ((ROWS, LEAST // 2), False)], ids=str
)
def test_small_products_are_as_they_were(shape, is_rounded):
    x, y = normal(*shape), normal(shape[1], OUT, seed=1)
    with FLOAT8(True):
        text = jax.jit(rows).lower(x, y).as_text()
    assert ("f8E4M3FN" in text) == is_rounded
    assert "f8E4M3FN" not in jax.jit(rows).lower(x, y).as_text()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_models_projections_are_in_it(method):
    """Forward and backward; a frozen kernel gets no gradient, which would be one more product."""
    sizes = {"hidden_size": LEAST, "intermediate_size": LEAST, "head_dim": LEAST}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    config = random_models.config_of("llama") | sizes
    settings = {"products": "float8", "dtype": "bfloat16"}
    head = {"head": "causal_lm"}
    model = build_tuned(config, methods.create({"name": method}), settings, head, "gpu")
    batch = random_models.inputs("llama", length=LEAST)

    def loss(trainable, frozen):
        return model.apply(trainable | frozen, batch).astype(jnp.float32).sum()

    trainable, frozen = model.partition.split(dict(model.shapes))
    step = jax.jit(jax.grad(loss)).trace(trainable, frozen)
    text = step.lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    gradients = [line for line in products if "f8E5M2" in line]
    values = [line for line in products if "f8E4M3FN" in line and line not in gradients]
    layers = model.config.num_hidden_layers
    assert len(values) == 7 * layers
    # Below the first factors nothing is to be trained, and no gradient goes on.
    below = 3 if method == "lora" else 0
    assert len(gradients) == (14 if method == "full" else 7) * layers - below
