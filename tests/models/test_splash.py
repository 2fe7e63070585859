"""The splash kernel, interpreted, against plain attention."""

import math
from functools import partial

import jax
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from ftjax.errors import UserError
from ftjax.models import splash
from ftjax.parallel.mesh import logical_axes, make_mesh
from tests.covering import product
from tests.models import random_models


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
    "in blocks, all gradients in one": (
        "llama",
        {"attention_block": 128, "attention_fused": True},
        "packed",
    ),
    "rematerialized": ("qwen3", {"segments": "scan", "remat": "full"}, "packed"),
}


def make_batch(kind):
    return (random_models.inputs if kind == "padded" else random_models.packed)(
        "llama", length=LENGTH
    )


FEW = [(name,) for name in CASES if name != "windows of some layers"]  # in loops they are, too


@pytest.mark.parametrize("name", product([(name,) for name in CASES], FEW))
def test_equals_plain_attention(name):
    case, settings, kind = CASES[name]
    model = random_models.build(case, None, platform="tpu", attention="splash", **settings)
    params, batch = random_models.parameters(model), make_batch(kind)
    hidden, grads = random_models.graded(model, params, batch)
    wanted, expected = random_models.graded(
        random_models.build(case, None, **settings), params, batch
    )
    assert random_models.difference(hidden, wanted) < 1e-4
    assert random_models.furthest(grads, expected) < 1e-3


def test_over_a_mesh_it_equals_one_device():
    plain, batch = random_models.build("llama", None), make_batch("packed")
    model = random_models.build("llama", None, platform="tpu", attention="splash")
    params = random_models.parameters(model)
    wanted, _ = random_models.graded(plain, params, batch)
    with logical_axes(make_mesh(1, 2, 2, jax.devices()[:4])):
        hidden, _ = random_models.graded(model, params, batch)
    assert random_models.difference(hidden, wanted) < 1e-4


SEQUENCES = {  # of heads of keys each device has one, or shares one; or keys are gathered
    "llama, 2": ("llama", {"sequence": 2}, 1),
    "llama, 4": ("llama", {"sequence": 4}, 2),
    "mistral, 2 and tensor": ("mistral", {"sequence": 2, "tensor": 2}, 2),
    "llama, gathered": ("llama", {"sequence": 2}, None),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_positions_are_exchanged_for_heads(name, monkeypatch):
    """Outputs and gradients of packed rows are those of one device."""
    case, axes, copies = SEQUENCES[name]
    if copies is None:
        monkeypatch.setattr(splash, "copies_of", lambda *_: None)
    length = splash.LANES * axes["sequence"]
    plain, batch = random_models.build(case, None), random_models.packed("llama", length=length)
    model = random_models.build(case, None, platform="tpu", attention="splash")
    params = random_models.parameters(model)
    wanted, expected = random_models.graded(plain, params, batch)
    with logical_axes(make_mesh(1, devices=jax.devices()[: math.prod(axes.values())], **axes)):
        assert splash.copies_of(2, 4, jax.sharding.get_abstract_mesh()) == copies
        hidden, grads = random_models.graded(model, params, batch)
    assert random_models.difference(hidden, wanted) < 1e-4
    assert random_models.furthest(grads, expected) < 1e-3


def test_heads_that_are_too_few_are_not_spread():
    with logical_axes(make_mesh(1, sequence=8)):
        mesh = jax.sharding.get_abstract_mesh()
        assert splash.copies_of(2, 4, mesh) is None  # four heads over eight devices
        assert splash.copies_of(2, 12, mesh) is None  # twelve
        assert splash.copies_of(8, 32, mesh) == 1
        assert splash.copies_of(4, 32, mesh) == 2


def test_prefixes_are_seen_from_everywhere():
    method, batch = {"name": "prefix_tuning", "length": 3}, make_batch("padded")
    model = random_models.build("llama", None, platform="tpu", method=method, attention="splash")
    plain, params = (
        random_models.build("llama", None, method=method),
        random_models.parameters(model),
    )
    hidden, grads = random_models.graded(model, params, batch)
    wanted, expected = random_models.graded(plain, params, batch)
    assert random_models.difference(hidden, wanted) < 1e-4
    assert random_models.furthest(grads, expected) < 1e-3


@pytest.mark.parametrize(
    ("case", "method", "kind", "platform", "message"),
    [
        ("bert", {}, "padded", "tpu", "splash is for decoders that see one side"),
        ("llama", {"name": "prefix_tuning"}, "packed", "tpu", "no prefixes for packed rows"),
        ("mistral", {"name": "prefix_tuning"}, "padded", "tpu", "or sliding windows"),
        ("llama", {}, "padded", "cpu", "runs on TPUs, and this is a CPU: use attention=auto"),
        ("llama", {}, "padded", "gpu", "runs on TPUs, and this is a GPU: use attention=auto"),
    ],
)
def test_refusals(case, method, kind, platform, message):
    with pytest.raises(UserError, match=message):
        model = random_models.build(
            case, None, platform=platform, method=method, attention="splash"
        )
        jax.eval_shape(model.apply, dict(model.shapes), make_batch(kind))
