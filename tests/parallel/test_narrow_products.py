"""Products in bfloat16 with sums in float32, against the same by hand in float64."""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ftjax import build, methods
from ftjax.models.language_head import read_off, score
from ftjax.parallel import narrow
from ftjax.parallel.mesh import logical_axes, make_mesh
from ftjax.parallel.narrow import NARROW, has_units, narrow_matmul, narrowed_for
from ftjax.parallel.product import matmul
from tests.models.cases import CASES

RANDOM = np.random.default_rng(0)
DOT = re.compile(r"= (\w+)\[[\d,]*\]\S* dot\(%?([\w.\-]+), %?([\w.\-]+)\)")


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32), np.float64)


@pytest.mark.parametrize(
    ("left", "right", "transposed"),
    [
        ((37, 40), (40, 24), False),
        ((3, 32, 40), (3, 24, 40), True),
        ((2, 3, 21, 16), (2, 3, 16, 17), False),
    ],
)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_value_and_gradients_are_of_rounded_operands(left, right, transposed, platform):
    x, y = normal(*left), normal(*right)

    def product(x, y):
        return narrow_matmul(x, y, transposed)

    with NARROW(platform):
        value, pullback = jax.vjp(jax.jit(product), x, y)
    grad = normal(*value.shape)
    dx, dy = pullback(grad)
    x, y, grad = map(rounded, (x, y, grad))
    wide = y.swapaxes(-1, -2) if transposed else y
    np.testing.assert_allclose(value, x @ wide, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dx, grad @ wide.swapaxes(-1, -2), rtol=1e-5, atol=1e-5)
    dwide = x.swapaxes(-1, -2) @ grad
    np.testing.assert_allclose(
        dy, dwide.swapaxes(-1, -2) if transposed else dwide, rtol=1e-5, atol=1e-5
    )


def operands(text: str) -> Iterator[tuple[str, str]]:
    """What each product of an optimized program reads."""
    dtypes: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            dtypes = {}
        if named := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\w+)\[", line):
            dtypes[named[1]] = named[2]
        if dot := DOT.search(line):
            yield dtypes[dot[2]], dtypes[dot[3]]


def test_no_product_of_a_model_is_widened_on_a_cpu():
    """XLA multiplies float32 in place of bfloat16 wherever an operand lies as it may not."""
    sides = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 96}
    config = {**CASES["bert"]().to_dict(), **sides}
    settings = {"products": "bfloat16"}
    tuned = build.build_tuned(
        config, methods.create({"name": "full"}), settings, {"head": "masked_lm"}
    )
    keys = list(tuned.shapes)
    params = tuned.init(jax.random.key(0), keys, dict.fromkeys(keys))
    batch = {
        "input_ids": RANDOM.integers(0, 90, (4, 32)),
        "attention_mask": np.ones((4, 32), np.int32),
    }

    def loss(params):
        return (tuned.apply(params, batch) ** 2).mean()

    text = jax.jit(jax.grad(loss)).lower(params).compile().as_text()
    read = list(operands(text))
    assert len(read) >= 3 * 6 * config["num_hidden_layers"]
    assert set(read) == {("bf16", "bf16")}


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """Says of what processor this machine is, and what XLA may use of it."""

    def say(flags: str | None, most: str = "") -> None:
        file = tmp_path / "cpuinfo"
        if flags is not None:
            file.write_text(f"processor : 0\nflags\t\t: fpu {flags}\nbugs : avx512_bf16\n")
        monkeypatch.setattr(narrow, "CPUINFO", file)
        monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_max_isa={most}" if most else "")
        has_units.cache_clear()

    yield say
    monkeypatch.undo()
    has_units.cache_clear()


def test_where_products_are_narrow(processor):
    processor("avx512f avx512_bf16")
    assert [narrowed_for("auto", "float32", p) for p in ("cpu", "gpu", "tpu")] == ["cpu", "", ""]
    assert narrowed_for("auto", "bfloat16", "cpu") == "cpu"
    assert narrowed_for("float32", "float32", "cpu") == ""
    assert narrowed_for("bfloat16", "float32", "tpu") == "tpu"
    assert narrowed_for("bfloat16", "bfloat16", "tpu") == ""  # is what it is
    for flags, most in (("avx512f", ""), (None, ""), ("amx_bf16 avx512_bf16", "AVX512_VNNI")):
        processor(flags, most)
        assert narrowed_for("auto", "float32", "cpu") == ""
        assert narrowed_for("bfloat16", "float32", "cpu") == "cpu"
    processor("amx_bf16", "AMX")
    assert narrowed_for("auto", "float32", "cpu") == "cpu"


def test_small_sides_stay_float32():
    x, kernel = normal(40, 64), normal(64, 8)
    with NARROW("cpu"):
        np.testing.assert_allclose(
            matmul(x, kernel, (None, None)), x @ kernel, rtol=1e-5, atol=1e-5
        )


def test_spread_kernels_give_the_same():
    x, kernel = normal(8, 16, 32), normal(32, 48)

    def loss(x, kernel):
        return jnp.sin(matmul(x, kernel, ("embed", "mlp"))).sum()

    with NARROW("cpu"):
        wanted = jax.value_and_grad(loss, (0, 1))(x, kernel)
        with logical_axes(make_mesh(1, 4, 2)):
            given = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2), given, wanted)
    np.testing.assert_allclose(given[0], wanted[0], rtol=1e-5)


def test_scores_of_words_are_those_of_rounded_operands():
    x, table = rounded(normal(2, 24, 32)), rounded(normal(40, 32))  # rounding changes nothing
    targets, weights = RANDOM.integers(0, 40, (2, 24)), RANDOM.integers(0, 2, (2, 24))
    x, table = x.astype(np.float32), table.astype(np.float32)

    def loss(x, table):
        return score(x, table.T, targets, weights).loss

    wanted = jax.value_and_grad(loss, (0, 1))(x, table)
    with NARROW("cpu"):
        given = jax.value_and_grad(loss, (0, 1))(x, table)
        np.testing.assert_allclose(read_off(x, table), x @ table.T, rtol=1e-5, atol=1e-5)
        each = score(x, table.T, targets)
    np.testing.assert_allclose(given[0], wanted[0], rtol=1e-6)
    for a, b in zip(given[1], wanted[1], strict=True):  # of which the logits' gradient is rounded
        np.testing.assert_allclose(a, b, atol=2**-8 * np.abs(b).max())
    np.testing.assert_allclose(each, score(x, table.T, targets), rtol=1e-5, atol=1e-5)
