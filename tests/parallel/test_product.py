"""Products with spread kernels, against the same on one device; and what is sent for them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax.forecast.hlo import summarize
from ftjax.parallel import collectives, product
from ftjax.parallel.collectives import factors
from ftjax.parallel.mesh import logical_axes, make_mesh
from ftjax.parallel.platform import SPARSE_CORES
from ftjax.parallel.product import gated, in_turn, matmul, rounded
from tests.covering import covering
from tests.covering import product as product_of

PAIRS = [("embed", "mlp"), ("mlp", "embed"), ("embed", "rank"), ("rank", "heads")]
RINGS = ["one ring", "large kernels", "two rings", "two rings, small arrays too"]
RINGS += ["two rings at once by sparse cores"]
CASES = [(axes, rings) for rings in RINGS for axes in PAIRS]


def torus(order, platform="tpu"):
    devices = np.empty(len(order), object)
    for i, place in enumerate(order):
        devices[i] = SimpleNamespace(id=i, coords=place, slice_index=0, platform=platform)
    return SimpleNamespace(axis_names=("x",), devices=devices, shape={"x": len(order)})


def test_the_torus_is_found_in_the_order_of_devices():
    grid = [tuple(place) for place in np.ndindex(2, 3, 4)]
    assert factors(torus(grid), "x") == (2, 3, 4)
    turned = [(z, y, x) for x, y, z in grid]  # the last coordinate changes slowest
    assert factors(torus(turned), "x") == (2, 3, 4)
    assert factors(torus([(*place[:2], 0) for place in grid[::4]]), "x") == (2, 3)
    assert factors(torus([(i, 0, 0) for i in range(6)]), "x") == (6,)
    snake = [(i, j if i % 2 == 0 else 3 - j, 0) for i in range(2) for j in range(4)]
    assert factors(torus(snake), "x") == (8,)
    hosts = [(0, host, gpu) for host in range(2) for gpu in range(4)]  # NCCL's own rings know them
    assert factors(torus(hosts, "gpu"), "x") == (8,)


@pytest.fixture(params=RINGS)
def rings(request, monkeypatch):
    monkeypatch.setattr(product, "LARGE", 0 if "large" in request.param else 2**26)
    if "two" in request.param:
        sizes = {"fsdp": (2, 2)}
        monkeypatch.setattr(collectives, "factors", lambda mesh, axis: sizes.get(axis, (1,)))
    monkeypatch.setattr(collectives, "SMALL", 2**25 if "small" in request.param else 0)
    with SPARSE_CORES("sparse" in request.param):
        yield


@pytest.mark.parametrize(("axes", "rings"), product_of(CASES, covering(CASES)), indirect=["rings"])
def test_products_and_gradients_equal_one_device(axes, rings):
    random = np.random.default_rng(0)
    x = random.normal(size=(8, 3, 16)).astype(np.float32)
    kernel = random.normal(size=(16, 24)).astype(np.float32)

    def loss(x, kernel):
        return jnp.sin(matmul(x, kernel, axes)).sum()

    wanted = jax.value_and_grad(loss, (0, 1))(x, kernel)
    with logical_axes(make_mesh(1, 4, 2)):
        found = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, wanted)


def test_gradients_are_scattered_and_kernels_gathered_twice(rings):
    x, kernel = jnp.ones((8, 32, 64)), jnp.ones((64, 128))

    def loss(x, kernel):
        return jnp.sin(matmul(jnp.cos(x), kernel, ("embed", "mlp"))).sum()

    with logical_axes(make_mesh(2, 4, 1)) as _:
        text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile().as_text()
    found, size = summarize(text), 64 * 128 * 4
    assert found.sent["reduce-scatter"] in (size / 4, size / 2 + size / 4)
    assert found.sent["all-reduce"] <= size / 4 + 8  # over data, of what is scattered; the loss
    assert found.sent["all-gather"] <= 2 * (size + size / 2)


def test_sparse_cores_scatter_along_all_dimensions_at_once(monkeypatch):
    """What is large: one reduce-scatter, where there is else one for each dimension."""
    monkeypatch.setattr(collectives, "factors", lambda *_: (2, 2))
    x, kernel = jnp.ones((8, 32, 64)), jnp.ones((64, 128))

    def scatters(sparse, small):
        monkeypatch.setattr(collectives, "SMALL", small)

        def loss(x, kernel):
            with SPARSE_CORES(sparse):
                return jnp.sin(matmul(jnp.cos(x), kernel, ("embed", "mlp"))).sum()

        with logical_axes(make_mesh(2, 4, 1)):
            compiled = jax.jit(jax.grad(loss, 1)).lower(x, kernel).compile()
        return summarize(compiled.as_text()).counts["reduce-scatter"]

    assert [scatters(True, 0), scatters(True, 2**25), scatters(False, 0)] == [1, 2, 2]


def test_gradients_one_after_the_other_are_the_same():
    random = np.random.default_rng(0)
    x, gate = (random.normal(size=(8, 24)).astype(np.float32) for _ in range(2))

    def loss(x, gate):
        first, second = in_turn(gate, x)
        return jnp.sin(gated(jax.nn.silu, first, second)).sum()

    def plain(x, gate):
        return jnp.sin(jax.nn.silu(gate) * x).sum()

    for of in (0, 1, (0, 1)):
        wanted = jax.grad(plain, of)(x, gate)
        found = jax.jit(jax.grad(loss, of))(x, gate)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)


def test_rows_that_do_not_divide_are_multiplied_all_the_same():
    x, kernel = np.ones((3, 16), np.float32), np.ones((16, 24), np.float32)
    with logical_axes(make_mesh(1, 4, 2)):
        found = jax.jit(lambda x, kernel: matmul(x, kernel, ("embed", "mlp")))(x, kernel)
    np.testing.assert_array_equal(found, x @ kernel)


def test_rounding_is_that_of_a_conversion():
    """Also of what is not finite; the gradient is the product's, in float32."""
    kernel = jnp.asarray(np.random.default_rng(0).normal(0, 1, (16, 8)), jnp.float32)
    kernel = kernel.at[0, :3].set(jnp.array([jnp.nan, jnp.inf, -0.0]))
    found, wanted = (y.astype(jnp.float32) for y in (rounded(kernel), kernel.astype(jnp.bfloat16)))
    np.testing.assert_array_equal(found, wanted)
    grads = [
        jax.grad(lambda w, f=f: (f(w[1:]).astype(jnp.float32) ** 2).sum())(kernel)
        for f in (rounded, lambda w: w.astype(jnp.bfloat16))
    ]
    assert grads[0].dtype == jnp.float32
    np.testing.assert_array_equal(*grads)
