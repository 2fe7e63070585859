"""UniPELT's gates see the real tokens of each example, wherever outputs are computed."""

import numpy as np
import pytest

from ftjax import methods
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.generation.decode import next_logits, read_prompt
from ftjax.testing import BASES, build, make_batch
from tests.models.random_models import config_of, parameters, quick

PREFIX = {"name": "prefix_tuning", "length": 3, "shift": False}
PARTS = (PREFIX, {"name": "pfeiffer"}, {"name": "lora", "rank": 2})
UNIPELT = {"name": "unipelt", "parts": PARTS}


def outputs(model, params, batch):
    return np.asarray(quick(lambda params: model.apply(params, batch))(params))


@pytest.mark.parametrize("base", ["bert", "llama", "t5"])
def test_padding_changes_nothing(base):
    model = build(base, UNIPELT)
    params, batch = parameters(model), make_batch(base)
    wider = {key: np.pad(batch[key], ((0, 0), (0, 4))) for key in ("input_ids", "attention_mask")}
    found = outputs(model, params, wider)
    np.testing.assert_allclose(found, outputs(model, params, batch), atol=1e-4)


def test_the_last_layer_sees_all_tokens_where_only_the_first_is_read():
    """Logits are those of the hidden states of all positions."""
    model, hidden = build("bert", UNIPELT), build("bert", UNIPELT, {}, {"head": None})
    params, batch = parameters(model), make_batch("bert")
    first = outputs(hidden, {path: params[path] for path in hidden.shapes}, batch)[:, 0]
    pooled = np.tanh(first @ params["pooler/kernel"] + params["pooler/bias"])
    wanted = pooled @ params["classifier/kernel"] + params["classifier/bias"]
    np.testing.assert_allclose(outputs(model, params, batch), wanted, atol=1e-4)


@pytest.mark.parametrize("segments", ["unrolled", "scan"])
def test_generation_keeps_the_prompts_gates(segments):
    """Gates that read nothing are the same of whole rows; others are of the prompt alone."""
    model = build_tuned(
        BASES["llama"], methods.create(UNIPELT), {"segments": segments}, {"head": "causal_lm"}
    )
    random, room = np.random.default_rng(0), 3
    ids = random.integers(5, 64, (2, 5 + room))
    mask = np.array([[0, 0, 0, 1, 1], [1] * 5], np.int32)
    wide = np.concatenate([mask, np.ones((2, room), np.int32)], 1)
    whole = {"input_ids": ids, "attention_mask": wide}
    whole["position_ids"] = np.maximum(wide.cumsum(1) - 1, 0)
    prompt = {"input_ids": ids[:, :5], "attention_mask": mask}
    step = quick(lambda p, cache, kept, last: next_logits(model, p, cache, kept, last, 1))
    read = quick(lambda p: read_prompt(model, p, prompt, room))

    def generated(params):
        logits, cache, kept = read(params)
        return np.asarray(logits), np.asarray(step(params, cache, kept, ids[:, 5])[0])

    params = parameters(model)
    blind = {p: x * 0 if "gate" in p and "kernel" in p else x for p, x in params.items()}
    wanted = outputs(model, blind, whole)
    first, second = generated(blind)
    np.testing.assert_allclose(first, wanted[:, 4], atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(second, wanted[:, 5], atol=1e-3, rtol=1e-4)
    short = {key: value[:, :5] for key, value in whole.items()}
    np.testing.assert_allclose(
        generated(params)[0], outputs(model, params, short)[:, 4], atol=1e-3, rtol=1e-4
    )
    assert np.abs(generated(params)[1] - second).max() > 1e-2


def test_what_is_refused():
    model = build("bert", UNIPELT)
    packed = {"input_ids": np.ones((1, 4), int), "segment_ids": np.array([[1, 1, 2, 2]])}
    with pytest.raises(UserError, match="gates cannot tell packed examples"):
        model.apply(parameters(model), packed)
    with pytest.raises(UserError, match=r"method\.parts: unipelt has no gate for ia3"):
        build("bert", {"name": "unipelt", "parts": ("pfeiffer", "ia3")})
    words = {"name": "lora", "targets": ("word_embeddings",)}
    with pytest.raises(UserError, match=r"method\.parts: lora's targets must be projections"):
        build("bert", {"name": "unipelt", "parts": ("pfeiffer", words)})
    with pytest.raises(UserError, match="which relative positions pass, too"):
        build_tuned(config_of("deberta-v3"), methods.create({"name": "unipelt"}))


def test_parts_that_could_be_merged_alone_are_not_beside_gates():
    parts = ({"name": "lora", "targets": ("query",)}, {"name": "lora", "targets": ("key",)})
    model = build("bert", {"name": "unipelt", "parts": parts})
    with pytest.raises(UserError, match="unipelt changes the computation and cannot be merged"):
        model.merged(parameters(model))


def test_parts_on_the_same_projection_are_refused():
    with pytest.raises(UserError, match='lora and lora add the same parameter.*"gate_lora_kernel"'):
        build("bert", {"name": "unipelt", "parts": ("lora", "lora")})
