"""Feed-forward blocks in parts, against whole ones."""

import jax
import numpy as np
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.parallel.mesh import logical_axes, make_mesh
from tests.covering import covering, product
from tests.forecast.abstract import LLAMA
from tests.models import random_models

METHODS = {
    "full": {},
    "lora": {"rank": 4, "targets": ("q_proj", "o_proj")},
    "houlsby": {"reduction": 8},
    "reft": {},
}


def tuned(method, parts, remat="none", **changes):
    made_of, settings = methods.find(method)(**METHODS.get(method, {})), {"parts": parts}
    settings |= {"remat": remat}
    return build_tuned(LLAMA | changes, made_of, settings, {"head": "causal_lm"})


def found(model, mesh=None):
    """Logits of two rows, and gradients of their squares' sum."""
    random = np.random.default_rng(0)
    params = {
        path: random.normal(path.endswith(("scale", "magnitude")), 0.1, leaf.shape).astype(
            np.float32
        )
        for path, leaf in model.shapes.items()
    }
    ids = random.integers(0, 256, (4, 9)).astype(np.int32)

    def loss(params):
        logits = model.apply(params, {"input_ids": ids})
        return (logits**2).sum(), logits

    return random_models.quick(jax.grad(loss, has_aux=True))(params)


CASES = [(method, shape) for method in METHODS for shape in (None, (1, 4, 1), (1, 2, 2))]


@pytest.mark.parametrize(("method", "shape"), product(CASES, covering(CASES)))
def test_parts_equal_the_whole(method, shape):
    grads, logits = found(tuned(method, 1))
    remat = "none" if method == "full" else "dots_context"  # wide features are kept, too
    model = tuned(method, 3, remat)  # of 128 features: not equally many
    if shape is None:
        parted, outputs = found(model)
    else:
        with logical_axes(make_mesh(*shape, jax.devices()[:4])):
            parted, outputs = found(model)
    np.testing.assert_allclose(outputs, logits, rtol=1e-5, atol=1e-5 * np.abs(logits).max())
    largest = max(np.abs(grad).max() for grad in grads.values())
    for path, grad in grads.items():
        assert random_models.difference(parted[path], grad, largest) < 1e-4, path


def test_what_is_computed_at_a_time_is_a_part():
    """No array of the program is as wide as the whole block, but the kernels themselves."""

    def shapes(parts):
        model = tuned("full", parts)
        params = {p: jax.ShapeDtypeStruct(x.shape, np.float32) for p, x in model.shapes.items()}
        ids = jax.ShapeDtypeStruct((4, 9), np.int32)
        jaxpr = jax.make_jaxpr(lambda p, i: model.apply(p, {"input_ids": i}))(params, ids)
        return str(jaxpr)

    wide = "f32[4,9,128]"
    assert wide in shapes(1) and wide not in shapes(2)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("lora", {"targets": "all-linear"}),
        ("dora", {"targets": ("down",)}),
        ("ia3", {}),
        ("qlora", {}),
        ("combination", {"parts": ("bitfit", {"name": "oft", "targets": ("up",), "block": 8})}),
    ],
)
def test_what_changes_products_inside_has_no_parts(name, settings):
    method = methods.create({"name": name, **settings})
    with pytest.raises(UserError, match=rf"model\.parts=2 must be 1 with method\.name={name}"):
        build_tuned(LLAMA, method, {"parts": 2}, {"head": "causal_lm"})


@pytest.mark.parametrize(("parts", "changes"), [(0, {}), (200, {}), (2, {"model_type": "gpt2"})])
def test_what_has_no_parts_says_so(parts, changes):
    with pytest.raises(UserError, match=f"model.parts={parts}"):
        tuned("full", parts, **changes)
