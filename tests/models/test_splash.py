"""The splash kernel, interpreted, against plain attention."""

from functools import partial

import jax
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from ftjax import methods, tuned
from ftjax.errors import UserError
from ftjax.parallel.mesh import logical_axes, make_mesh
from tests.models import made


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    make = partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", make)


LENGTH = 130  # more than the kernel's 128 lanes

CASES = {
    "padded": ("llama", {}, "padded"),
    "packed": ("llama", {}, "packed"),
    "window": ("mistral", {}, "padded"),
    "windows of some layers, scanned": ("gemma2", {"segments": "scan"}, "packed"),
    "windows of some layers": ("gemma2", {}, "packed"),
    "rematerialized": ("qwen3", {"segments": "scan", "remat": "full"}, "packed"),
}


def make_batch(kind):
    batch = made.inputs("llama", length=LENGTH)
    if kind == "packed":
        place = np.arange(LENGTH)
        batch["segment_ids"] = np.stack([1 + (place > 50), (1 + place // 40) * (place < 120)])
        batch["position_ids"] = np.stack([place - 51 * (place > 50), place % 40])
        del batch["attention_mask"]
    return batch


def graded(model, params, batch):
    real = batch.get("segment_ids", batch.get("attention_mask")) > 0

    def loss(params):
        hidden = model.apply(params, batch)
        return (hidden**2 * real[..., None]).sum(), hidden

    grads, hidden = made.quick(jax.grad(loss, has_aux=True))(params)
    return np.asarray(hidden)[real], made.unstacked(grads)


@pytest.mark.parametrize("name", CASES)
def test_equals_plain_attention(name):
    case, settings, kind = CASES[name]
    model = made.build(case, None, attention="splash", **settings)
    params, batch = made.parameters(model), make_batch(kind)
    hidden, grads = graded(model, params, batch)
    wanted, expected = graded(made.build(case, None, **settings), params, batch)
    assert made.difference(hidden, wanted) < 1e-4
    largest = max(np.abs(grad).max() for grad in expected.values())
    for path, grad in expected.items():
        assert made.difference(grads[path], grad, largest) < 1e-3, path


def test_over_a_mesh_it_equals_one_device():
    plain = made.build("llama", None)
    model, params, batch = made.build("llama", None, attention="splash"), None, make_batch("packed")
    params = made.parameters(model)
    wanted, _ = graded(plain, params, batch)
    with logical_axes(make_mesh(1, 2, 2, jax.devices()[:4])):
        hidden, _ = graded(model, params, batch)
    assert made.difference(hidden, wanted) < 1e-4


def test_prefixes_are_seen_from_everywhere():
    settings = {"name": "prefix_tuning", "length": 3}
    found = []
    for attention in ("splash", "xla"):
        method = methods.create(settings)
        model = tuned.build(made.config_of("llama"), method, {"attention": attention}, {})
        found.append(graded(model, made.parameters(model), make_batch("padded")))
    assert made.difference(found[0][0], found[1][0]) < 1e-4
    for path, grad in found[1][1].items():
        assert made.difference(found[0][1][path], grad, np.abs(grad).max()) < 1e-3, path


@pytest.mark.parametrize(
    ("case", "method", "kind", "message"),
    [
        ("bert", {"name": "full"}, "padded", "attention=splash is for decoders, not bert"),
        ("llama", {"name": "prefix_tuning"}, "packed", "no prefixes for packed rows"),
        ("mistral", {"name": "prefix_tuning"}, "padded", "or sliding windows"),
    ],
)
def test_refusals(case, method, kind, message):
    with pytest.raises(UserError, match=message):
        config, method = made.config_of(case), methods.create(method)
        model = tuned.build(config, method, {"attention": "splash"}, {})
        jax.eval_shape(model.apply, dict(model.shapes), make_batch(kind))
