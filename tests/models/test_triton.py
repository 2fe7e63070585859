"""JAX's flash kernels for GPUs, interpreted, against plain attention."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas.ops.gpu import attention

from ftjax.errors import UserError
from ftjax.models.attention import _tell_once
from ftjax.models.masks import Pattern
from ftjax.models.triton import BACKWARD, BLOCK, refusal
from ftjax.parallel.mesh import logical_axes, make_mesh
from tests.covering import product
from tests.models import random_models

build = partial(random_models.build, platform="gpu")
LENGTH = BLOCK + 6  # more than one block, the last one not whole


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(attention, "mha", partial(attention.mha, interpret=True))


CASES = {
    "decoder": ("llama", {}, LENGTH),  # two heads of queries share one of keys
    "short": ("llama", {}, BACKWARD - 5),
    "scanned and computed again": ("qwen3", {"segments": "scan", "remat": "full"}, LENGTH),
    "encoder": ("bert", {}, LENGTH),
}
FEW = [(name,) for name in CASES if name != "short"]


@pytest.mark.parametrize("name", product([(name,) for name in CASES], FEW))
def test_equals_plain_attention(name, interpreted):
    case, settings, length = CASES[name]
    model = build(case, None, attention="triton", **settings)
    params = random_models.parameters(model)
    batch = random_models.packed(case, length=length)
    hidden, grads = random_models.graded(model, params, batch)
    plain = random_models.build(case, None, **settings)
    wanted, expected = random_models.graded(plain, params, batch)
    assert random_models.difference(hidden, wanted) < 1e-4
    assert random_models.furthest(grads, expected) < 1e-3


def test_over_a_mesh_it_equals_one_device(interpreted):
    batch = random_models.packed("llama", length=BACKWARD)
    model = build("llama", None, attention="triton")
    params = random_models.parameters(model)
    wanted = random_models.hidden(random_models.build("llama", None), params, batch)
    with logical_axes(make_mesh(1, 2, 2, jax.devices()[:4])):
        hidden = random_models.hidden(model, params, batch)
    assert random_models.difference(hidden, wanted) < 1e-4


def lowered(model, batch) -> str:
    """A step's program for a GPU: gradients of all parameters."""

    def loss(params):
        return jnp.square(model.apply(params, batch).astype(jnp.float32)).sum()

    step = jax.jit(jax.grad(loss)).trace(dict(model.shapes))
    return step.lower(lowering_platforms=("cuda",)).as_text()


def test_packed_rows_are_its_and_others_cudnns(monkeypatch, caplog):
    """By attention=auto, and which and why is said; no mask of (queries, keys) is there."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91002)
    _tell_once.cache_clear()
    caplog.set_level(logging.INFO)
    model = build("llama", "causal_lm", dtype="bfloat16")
    packed = lowered(model, random_models.packed("llama", length=BLOCK))
    assert "mha_forward" in packed and "mha_backward" in packed and "__cudnn$" not in packed
    assert "attention of packed rows by Triton: cuDNN would take a mask" in caplog.text
    rows = lowered(model, random_models.inputs("llama", length=BLOCK))
    assert "__cudnn$fmhaSoftmax" in rows and "mha_forward" not in rows
    windows = build("mistral", "causal_lm", dtype="bfloat16")
    text = lowered(windows, random_models.packed("mistral", length=BLOCK))
    assert "__cudnn$fmha" in text and "mha_forward" not in text
    assert "not by Triton: it is for packed rows that see themselves" in caplog.text


PACKED = Pattern(segments=jnp.ones((2, 6), jnp.int32), packed=True)


@pytest.mark.parametrize(
    ("size", "pattern", "softcap", "reason"),
    [
        (64, PACKED, None, None),
        (256, PACKED, None, "heads of 256 features are wider than 128"),
        (64, PACKED, 30.0, "neither soft-capping nor biases"),
        (64, PACKED.replace(packed=False), None, "for packed rows that see themselves"),
        (64, PACKED.after(3), None, "without prefixes"),
        (64, PACKED.replace(windows=(4,)), None, "or windows"),
    ],
)
def test_refusals(size, pattern, softcap, reason):
    query = jnp.zeros((2, 6, 4, size))
    refused = refusal(query, query, softcap, None, pattern)
    assert refused == reason or reason in refused


def test_what_is_asked_for_and_not_there_is_refused():
    model = build("mistral", None, attention="triton")
    with pytest.raises(UserError, match="attention=triton: it is for packed rows.*; use attention"):
        jax.eval_shape(model.apply, dict(model.shapes), random_models.packed("mistral"))
    with pytest.raises(UserError, match="triton runs on GPUs, and this is a CPU: use attention="):
        random_models.build("llama", None, attention="triton")
