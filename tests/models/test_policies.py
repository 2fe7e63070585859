"""A policy for each segment of layers, against layers of which all is kept."""

import jax
import numpy as np
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.errors import UserError
from tests.forecast.abstract import LLAMA
from tests.models import random_models

LAYERS = 3


def built(method="lora", **settings):
    return build_tuned(LLAMA, methods.create({"name": method}), settings, {"head": "causal_lm"})


def graded(model):
    params = random_models.parameters(model)
    ids = np.random.default_rng(0).integers(0, 256, (2, 9)).astype(np.int32)

    def loss(params):
        return (model.apply(params, {"input_ids": ids}) ** 2).sum()

    return random_models.quick(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize("policies", [("full", "dots_context"), ("context", "none")])
def test_segments_have_their_own(policies):
    wanted, expected = graded(built(segments=(2, 1)))
    found, grads = graded(built(segments=(2, 1), remat=policies))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    largest = max(np.abs(grad).max() for grad in expected.values())
    for path, grad in expected.items():
        assert random_models.difference(grads[path], grad, largest) < 1e-4, path


def test_layers_that_are_computed_anew_are_those_of_the_policy():
    """By the products of the program: of the first two layers they are there once more."""

    def products(policies):
        model = built("full", segments=(2, 1), remat=policies)
        params = {p: jax.ShapeDtypeStruct(x.shape, np.float32) for p, x in model.shapes.items()}
        ids = {"input_ids": jax.ShapeDtypeStruct((2, 9), np.int32)}
        text = str(jax.make_jaxpr(jax.grad(lambda p: model.apply(p, ids).sum()))(params))
        return text.count("dot_general")

    assert products(("none", "none")) < products(("none", "full")) < products(("full", "full"))


@pytest.mark.parametrize("segments", ["scan", (1, 1, 1), (3,)])
def test_they_are_as_many_as_segments(segments):
    with pytest.raises(UserError, match=r"model\.remat=full,none is of decoders"):
        built(segments=segments, remat=("full", "none"))
