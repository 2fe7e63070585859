"""x W of a quantized W, by every way of computing it, against the dequantized product."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas

from ftjax import quantized_product, quantized_product_tpu
from ftjax.forecast.chips import topology_devices
from ftjax.forecast.hlo import summarize
from ftjax.parallel.mesh import logical_axes, make_mesh
from ftjax.quantization import Int8, Nf4
from tests.covering import covering, product

FORMS = {"nf4": Nf4, "int8": Int8}
ROWS = 4


@pytest.fixture(params=["a loop of XLA's", "the kernel for TPUs"])
def way(request, monkeypatch):
    """On this machine's processors kernels are interpreted, in the place of the loop."""
    if request.param == "the kernel for TPUs":
        monkeypatch.setattr(pallas, "pallas_call", partial(pallas.pallas_call, interpret=True))
        monkeypatch.setattr(quantized_product, "in_tiles", quantized_product_tpu.product)
        quantized_product_tpu.product.clear_cache()
    yield request.param
    quantized_product_tpu.product.clear_cache()


def quantized(form: str, *shape: int):
    weight = np.random.default_rng(0).normal(0, 0.05, shape).astype(np.float32)
    return jax.jit(FORMS[form].of)(weight)


def graded(x, kernel, axes, dtype=jnp.float32):
    """x W, and the gradient to x of Σ sin(x W)."""

    def loss(x):
        y = quantized_product.matmul(x.astype(dtype), kernel, axes)
        assert y.dtype == dtype
        return jnp.sin(y.astype(jnp.float32)).sum(), y

    grad, y = jax.jit(jax.grad(loss, has_aux=True))(x)
    return np.asarray(y, np.float64), np.asarray(grad, np.float64)


def by_hand(x, kernel):
    weight = np.asarray(kernel.dequantized(), np.float64)
    y = x.astype(np.float64) @ weight
    return y, np.cos(y) @ weight.T


# Tiles of all inputs, of a few blocks of them, and rows that no tile of rows divides.
CASES = [(form, shape) for form in FORMS for shape in ((64, 5), (192, 100), (1152, 640))]


@pytest.mark.parametrize(("form", "shape"), product(CASES, covering(CASES, [("nf4", (1152, 640))])))
def test_products_and_gradients_are_those_of_the_dequantized_kernel(way, form, shape, monkeypatch):
    monkeypatch.setattr(quantized_product_tpu, "ROWS", 16)
    kernel = quantized(form, *shape)
    x = np.random.default_rng(1).normal(size=(ROWS, 10, shape[0])).astype(np.float32)
    for found, wanted in zip(graded(x, kernel, (None, None)), by_hand(x, kernel), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)
    # In bfloat16 the kernel is rounded, the sum is not.
    found, _ = graded(x, kernel, (None, None), jnp.bfloat16)
    np.testing.assert_allclose(found, by_hand(x, kernel)[0], atol=0.03 * np.abs(found).max())


@pytest.mark.parametrize("form", FORMS)
def test_a_part_is_that_of_the_whole(form):
    """Of inputs and of outputs, across groups of 256 scales."""
    kernel = quantized(form, 1024, 96)
    whole = np.asarray(kernel.dequantized())
    part = jax.jit(lambda start, axis: kernel.part(start, 64, axis).dequantized(), static_argnums=1)
    np.testing.assert_array_equal(part(jnp.int32(320), 0), whole[320:384])
    outputs = jax.jit(lambda start: kernel.part(start, 24, 1).dequantized())
    np.testing.assert_array_equal(outputs(jnp.int32(40)), whole[:, 40:64])
    np.testing.assert_array_equal(kernel.once().dequantized(), whole)
    assert kernel.shape == whole.shape


MESHES = [
    (form, axes, mesh)
    for form in FORMS
    for axes in (("embed", "mlp"), ("mlp", "embed"))
    for mesh in ((1, 2, 2), (1, 4, 1), (1, 1, 2), (2, 1, 1))
]
FEW_MESHES = covering(
    MESHES, [("nf4", ("mlp", "embed"), (1, 2, 2)), ("int8", ("embed", "mlp"), (1, 2, 2))]
)


@pytest.mark.parametrize(("form", "axes", "mesh"), product(MESHES, FEW_MESHES))
def test_over_a_mesh_it_equals_one_device(way, form, axes, mesh):
    kernel = quantized(form, 256, 128)
    x = np.random.default_rng(1).normal(size=(ROWS, 3, 256)).astype(np.float32)
    count = int(np.prod(mesh))
    with logical_axes(make_mesh(*mesh, jax.devices()[:count])):
        results = graded(x, kernel, axes)
    for found, wanted in zip(results, by_hand(x, kernel), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_codes_are_gathered_not_kernels():
    """Half a byte a weight and four bytes a block; nothing else is sent for a product."""
    kernel = jax.eval_shape(Nf4.of, jax.ShapeDtypeStruct((512, 256), jnp.float32))
    x = jax.ShapeDtypeStruct((8, 4, 512), jnp.float32)
    with logical_axes(make_mesh(1, 8, 1)) as _:
        mesh = jax.sharding.get_abstract_mesh()
        at = lambda *spec: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))  # noqa: E731
        kernel = kernel.replace(
            codes=kernel.codes.update(sharding=at("fsdp")),
            scales=kernel.scales.update(sharding=at("fsdp")),
        )
        run = jax.jit(lambda x, k: quantized_product.matmul(x, k, ("embed", "mlp")))
        text = run.lower(x.update(sharding=at("fsdp")), kernel).compile().as_text()
    size = 512 * 256
    assert summarize(text).sent == {"all-gather": size / 2 + 4 * size / 64}


def test_rows_that_do_not_divide_are_multiplied_all_the_same(way):
    kernel = quantized("nf4", 128, 64)
    x = np.random.default_rng(1).normal(size=(3, 2, 128)).astype(np.float32)
    with logical_axes(make_mesh(1, 4, 2)):
        results = graded(x, kernel, ("embed", "mlp"))
    for found, wanted in zip(results, by_hand(x, kernel), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_no_device_decodes_a_whole_kernel():
    """Neither this machine's, forward and backward, nor a TPU, whose program has the kernel."""
    shape, rows = (2048, 4096), 256
    kernel = jax.eval_shape(Nf4.of, jax.ShapeDtypeStruct(shape, jnp.float32))
    x = jax.ShapeDtypeStruct((rows, shape[0]), jnp.bfloat16)

    def grads(x, kernel):
        first = quantized_product.matmul(x, kernel, (None, None))
        return jax.grad(lambda x: quantized_product.matmul(jnp.sin(x), kernel, (None, None)).sum())(
            x + first.sum()
        )

    program = jax.jit(grads).lower(x.update(dtype=jnp.float32), kernel).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.8 * 4 * np.prod(shape)
    pytest.importorskip("libtpu")
    at = jax.sharding.SingleDeviceSharding(topology_devices("v5e:1x1")[1][0])
    x, kernel = jax.tree.map(lambda leaf: leaf.update(sharding=at), (x, kernel))
    program = jax.jit(grads).lower(x, kernel).compile()
    assert program.memory_analysis().temp_size_in_bytes < 0.5 * 2 * np.prod(shape)
    kernels = summarize(program.as_text()).kernels
    flops = sum(n * quantized_product_tpu.kernel_flops(*k) for k, n in kernels.items())
    assert flops in (2 * 2 * rows * np.prod(shape), 3 * 2 * rows * np.prod(shape))
