"""Weights held in fewer bits: near the model's own logits, read as they are held."""

import re
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest

from ftjax.errors import UserError
from ftjax.generation import decode
from ftjax.generation.load import make_generator, open_model
from ftjax.generation.settings import Settings
from ftjax.generation.weights import narrowed
from ftjax.parallel.packed import Packed
from ftjax.quantization import Int8, Int8Table, Quantized

BATCH = {
    "input_ids": np.arange(5, 21).reshape(2, 8),
    "attention_mask": np.ones((2, 8), np.int32),
    "numbers": np.arange(2),
}


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
@pytest.mark.parametrize("sizes", [(96, 40), (37, 5000)])
@pytest.mark.parametrize("is_table", [False, True])
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_product_is_of_the_rounded_kernel(weights, is_table, sizes, rows):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, sizes[0])) * 1e3 + rng.standard_normal(sizes[0])
    x = x.astype(np.float32)
    kernel = rng.standard_normal(sizes).astype(np.float32)
    held = Packed.of(kernel.T if is_table else kernel, weights, is_table)
    assert held.shape == (sizes[::-1] if is_table else sizes)
    rounded = kernel.astype(ml_dtypes.bfloat16).astype(np.float64)
    if weights == "int8":
        scales = np.abs(kernel).max(0) / 127
        rounded = np.round(kernel / scales) * scales.astype(np.float64)
    exact = x @ rounded
    assert np.abs(held.product(x) - exact).max() < 2e-6 * np.abs(exact).max()
    whole = held.dequantized()
    np.testing.assert_allclose(whole.T if is_table else whole, rounded, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("transposed", [False, True])
def test_product_is_of_the_quantized_kernel(rows, transposed):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 96)).astype(np.float32) * [[1e3]] + rng.standard_normal(96)
    kernel = rng.standard_normal((96, 40)).astype(np.float32)
    held = Int8Table.of(kernel.T) if transposed else Int8.of(kernel)
    rounded = np.asarray(held.codes, np.float64)
    rounded = (rounded.T if transposed else rounded) * np.asarray(held.scales)
    y = held.product(x.astype(np.float32))
    exact = x @ rounded
    assert np.abs(y - exact).max() < 2e-4 * np.abs(exact).max()
    assert np.abs(rounded - kernel).max() <= np.abs(kernel).max() / 127 / 2 * 1.001


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_table_gives_rows(weights):
    table = np.random.default_rng(0).standard_normal((30, 16)).astype(np.float32)
    tables = [Packed.of(table, weights, True)]
    tables += [Int8Table.of(table)] if weights == "int8" else []
    for held in tables:
        rows = held.rows(np.array([[3, 29], [0, 3]]))
        assert rows.shape == (2, 2, 16)
        np.testing.assert_allclose(rows[0, 0], table[3], atol=np.abs(table[3]).max() / 250)


def widened(leaf):
    """What a leaf stands for, in float32."""
    if isinstance(leaf, Quantized | Int8Table):
        return leaf.dequantized()
    return leaf.astype(np.float32)


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
def test_logits_are_of_the_rounded_weights_and_nothing_is_copied(
    weights, rows, decoder, one_device
):
    tuned, params, _ = open_model(str(decoder), one_device)
    settings = Settings(max_new_tokens=6)
    model, held = narrowed(tuned, params, weights, rows)
    assert any(isinstance(leaf, Packed) for leaf in held.values()) == (rows == 2)
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
    narrow = [leaf for leaf in held.values() if jax.tree.leaves(leaf)[0].dtype != np.float32]
    shapes = {part.shape for leaf in narrow for part in (leaf, *jax.tree.leaves(leaf)[:1])}
    assert len(shapes) > 3
    for shape in shapes:
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
