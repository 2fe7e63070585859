"""Products of bfloat16 while tokens are generated: no float32 copy of what they multiply by."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.generation import decode
from ftjax.generation.settings import Settings
from ftjax.models.language_head import read_off
from ftjax.parallel.product import FEW, rows
from tests.models.cases import CASES

SIZE, OUT = 48, 96


def made(count, transposed=False):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(count, 1, SIZE)), random.normal(size=(SIZE, OUT))
    return jnp.asarray(x, jnp.bfloat16), jnp.asarray(
        kernel.T if transposed else kernel, jnp.bfloat16
    )


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("function", [rows, read_off])
def test_sums_are_float32s_and_nothing_is_copied(function, count):
    transposed = function is read_off
    x, kernel = made(count, transposed)
    wide = np.asarray(kernel, np.float64)
    wanted = np.asarray(x, np.float64) @ (wide.T if transposed else wide)
    program = jax.jit(function).lower(x, kernel).compile()
    found = np.asarray(program(x, kernel), np.float64)
    assert found.shape == (count, 1, OUT)
    np.testing.assert_allclose(found, wanted, rtol=0 if transposed else 2**-8, atol=1e-5)
    copies = rf"f32\[({SIZE},{OUT}|{OUT},{SIZE})\]"
    assert not re.findall(copies, program.as_text())


@pytest.mark.parametrize("count", [1, 3, FEW + 1])
@pytest.mark.parametrize("function", [rows, read_off])
def test_gradients_are_those_of_the_product(function, count):
    transposed = function is read_off
    x, kernel = made(count, transposed)
    dtype = jnp.float32 if transposed else jnp.bfloat16
    slopes = jnp.asarray(np.random.default_rng(1).normal(size=(count, 1, OUT)), dtype)
    dx, dkernel = jax.jit(lambda *given: jax.vjp(function, *given)[1](slopes))(x, kernel)
    wide, back = (np.asarray(y, np.float64) for y in (kernel, slopes))
    outer = np.asarray(x, np.float64)[:, 0].T @ back[:, 0]
    wanted = (back @ wide, outer.T) if transposed else (back @ wide.T, outer)
    for ours, expected in zip((dx, dkernel), wanted, strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(ours, np.float64), expected, atol=2**-7 * scale)


@pytest.mark.parametrize("case", ["llama", "gpt2", "t5"])
def test_no_table_is_copied_before_the_loop_over_tokens(case):
    """It is begun for every piece of a text that is shown as it is written."""
    config = {**CASES[case]().to_dict(), "vocab_size": 50_000}
    head = {"head": "seq2seq_lm" if case == "t5" else "causal_lm"}
    full = methods.create({"name": "full"})
    model, settings = build_tuned(config, full, {"dtype": "bfloat16"}, head), Settings()
    make, whole = jax.ShapeDtypeStruct, jnp.int32
    params = {path: make(leaf.shape, jnp.bfloat16) for path, leaf in model.shapes.items()}
    batch = {name: make((2, 8), whole) for name in ("input_ids", "attention_mask")}
    batch["numbers"] = make((2,), whole)
    state = jax.eval_shape(partial(decode.start, model, settings), params, batch)
    go_on = jax.jit(partial(decode.go_on, model, settings))
    used = go_on.lower(params, state, make((), whole)).compile().memory_analysis()
    assert used.temp_size_in_bytes < 2 * 50_000 * 32  # bytes of the table as it is
