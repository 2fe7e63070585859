"""Weights held in fewer bits: near the model's own logits, read as they are held."""

import re
from functools import partial

import jax
import numpy as np
import pytest

from ftjax.errors import UserError
from ftjax.generation import decode
from ftjax.generation.load import make_generator, open_model
from ftjax.generation.settings import Settings
from ftjax.generation.weights import narrowed
from ftjax.parallel.int8 import int8_product
from ftjax.quantization import Int8, Int8Table, Quantized

BATCH = {
    "input_ids": np.arange(5, 21).reshape(2, 8),
    "attention_mask": np.ones((2, 8), np.int32),
    "numbers": np.arange(2),
}


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("transposed", [False, True])
def test_product_is_of_the_quantized_kernel(rows, transposed):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 96)).astype(np.float32) * [[1e3]] + rng.standard_normal(96)
    kernel = rng.standard_normal((96, 40)).astype(np.float32)
    held = Int8Table.of(kernel.T) if transposed else Int8.of(kernel)
    rounded = np.asarray(held.codes, np.float64)
    rounded = (rounded.T if transposed else rounded) * np.asarray(held.scales)
    y = int8_product(x.astype(np.float32), held.codes, held.scales, transposed)
    exact = x @ rounded
    assert np.abs(y - exact).max() < 2e-4 * np.abs(exact).max()
    assert np.abs(rounded - kernel).max() <= np.abs(kernel).max() / 127 / 2 * 1.001


def test_table_gives_rows():
    table = np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32)
    held = Int8Table.of(table)
    rows = held.rows(np.array([[3, 29], [0, 3]]))
    assert rows.shape == (2, 2, 16)
    np.testing.assert_allclose(rows[0, 0], table[3], atol=np.abs(table[3]).max() / 250)


def widened(leaf):
    """What a leaf stands for, in float32."""
    if isinstance(leaf, Int8Table):
        return leaf.rows(np.arange(leaf.shape[0]))
    return leaf.dequantized() if isinstance(leaf, Int8) else leaf.astype(np.float32)


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_logits_are_of_the_rounded_weights_and_nothing_is_copied(weights, decoder, one_device):
    tuned, params, _ = open_model(str(decoder), one_device)
    settings = Settings(max_new_tokens=6)
    model, held = narrowed(tuned, params, weights)
    rounded = {path: widened(leaf) for path, leaf in held.items()}
    start = jax.jit(partial(decode.start, model, settings))
    state, expected = start(held, BATCH), start(rounded, BATCH)
    np.testing.assert_allclose(state.likelihood, expected.likelihood, rtol=2e-3)
    near = partial(np.testing.assert_allclose, rtol=0.02, atol=0.02)
    jax.tree.map(near, state.cache, expected.cache)
    go_on = jax.jit(partial(decode.go_on, model, settings))
    text = go_on.lower(held, state, np.int32(6)).compile().as_text()
    within = ("%fused", "%wrapped")  # of what is in a fusion nothing is stored
    parts = [part for part in text.split("\n\n") if not part.strip().startswith(within)]
    narrow = {leaf.shape for leaf in jax.tree.leaves(held) if leaf.dtype != np.float32}
    assert len(narrow) > 3
    for shape in narrow:
        dimensions = ",".join(map(str, shape))
        assert not re.findall(rf".*[sf]32\[{dimensions}\].*", "\n".join(parts))


def test_adapters_are_merged_and_the_rest_is_refused(decoder, one_device):
    model = open_model(str(decoder), one_device)
    generator = make_generator(*model, changes={"max_new_tokens": 5}, weights="int8")
    leaves = generator._params.values()
    assert sum(isinstance(leaf, Quantized) for leaf in leaves) == 2 * 7 + 1 + 1
    assert len(generator(["the film"])[0][0]) > 0
    with pytest.raises(UserError, match="int8"):
        narrowed(*model[:2], "int4")
