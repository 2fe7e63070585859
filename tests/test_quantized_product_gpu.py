"""NF4 kernels decoded inside of products, interpreted, against what they are decoded to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.quantization import BLOCK, DYNAMIC, GROUP, Nf4
from ftjax.quantized_product import matmul
from ftjax.quantized_product_gpu import product, takes
from tests.models.random_models import quick


def quantized(size: int, out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random kernel's codes and largest weights, and what they stand for."""
    weight = np.random.default_rng(0).normal(size=(size, out)).astype(np.float32)
    kernel = quick(Nf4.of)(weight)
    groups = np.repeat(np.asarray(kernel.groups), GROUP)[: size // BLOCK * out]
    absmax = DYNAMIC[np.asarray(kernel.scales)] * groups.reshape(out, -1).T
    return (
        kernel.codes,
        absmax + np.asarray(kernel.mean),
        np.asarray(quick(Nf4.dequantized)(kernel)),
    )


@pytest.mark.parametrize(
    ("rows", "size", "out"), [(3, 128, 16), (140, 64, 96), (1, 192, 64), (130, 64, 32)], ids=str
)
def test_products_are_those_of_the_decoded_kernel(rows, size, out):
    codes, absmax, weight = quantized(size, out)
    assert takes(codes)
    for transposed, kernel in ((False, weight), (True, weight.T)):
        x = np.random.default_rng(1).normal(size=(rows, len(kernel))).astype(np.float32)
        found = product(x, codes, absmax, transposed, interpret=True)
        np.testing.assert_allclose(found, x @ kernel, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_sums_are_in_float32(transposed):
    """Of bfloat16: what is given differs by its own rounding alone, not by that of each sum."""
    codes, absmax, weight = quantized(*((64, 2048) if transposed else (2048, 16)))
    kernel = jnp.asarray(weight.T if transposed else weight, jnp.bfloat16)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(16, len(kernel))), jnp.bfloat16)
    found = product(x, codes, absmax, transposed, interpret=True)
    wanted = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), wanted, rtol=2**-8, atol=1e-3)


def test_what_does_not_divide_is_not_taken():
    assert not takes(np.zeros((32, 24), np.uint8))
    assert not takes(np.zeros((2, 32, 32), np.uint8))


@pytest.mark.parametrize("transposed", [False, True])
def test_it_lowers_for_gpus(transposed):
    """With the codes as they are stored: nothing of the size of the kernel is in the program."""
    codes, absmax, _ = quantized(128, 64)
    x = jax.ShapeDtypeStruct((32, 64 if transposed else 128), jnp.bfloat16)
    traced = jax.jit(lambda x: product(x, codes, absmax, transposed)).trace(x)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "nf4_product" in text and "tensor<128x64x" not in text


@pytest.mark.parametrize(("rows", "decodes_inside"), [(8, True), (128, False)])
def test_gpus_take_it_for_a_few_rows(rows, decodes_inside):
    kernel = quick(Nf4.of)(np.ones((128, 64), np.float32))
    x = jax.ShapeDtypeStruct((rows, 128), jnp.bfloat16)
    traced = jax.jit(lambda x: matmul(x, kernel, (None, None))).trace(x)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert ("nf4_product" in text) == decodes_inside
