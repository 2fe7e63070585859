"""What only XLNet has: masks of permutations, the last token as summary, heads kept apart."""

import jax
import numpy as np
import pytest
import torch
import transformers

from ftjax import methods, pretrained
from ftjax.build import build_tuned
from ftjax.errors import UserError
from ftjax.formats.folder import read_config
from tests.conftest import build
from tests.models.cases import CASES

FULL = {"name": "full"}


def saved(folder, architecture, **changes):
    """transformers' model with random weights, saved to a folder."""
    torch.manual_seed(0)
    config = CASES["xlnet"]()
    config.update(changes)
    model = getattr(transformers, architecture)(config).eval()
    model.save_pretrained(folder)
    return model


def load(folder, head, mesh):
    model = build(folder, FULL, {}, head)
    params, absent = pretrained.load(folder, model, mesh, jax.random.key(0))
    assert not absent
    return jax.jit(model.apply), params


def test_permutations_and_clamped_distances_equal_transformers(one_device, tmp_path):
    theirs = saved(tmp_path, "XLNetLMHeadModel", clamp_len=3)
    apply, params = load(tmp_path, {"head": "causal_lm"}, one_device)
    random = np.random.default_rng(0)
    batch = {
        "input_ids": random.integers(4, 64, (3, 9)),
        "attention_mask": (np.arange(9) >= np.array([[0], [2], [5]])).astype(np.int32),
        "token_type_ids": random.integers(0, 3, (3, 9)),
        "perm_mask": (random.random((3, 9, 9)) < 0.5).astype(np.float32),
    }
    with torch.no_grad():
        wanted = theirs(**{name: torch.tensor(value) for name, value in batch.items()}).logits
    scale = wanted.abs().max().item()
    found = apply(params, batch)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5 * scale)
    free = apply(params, {name: batch[name] for name in batch if name != "perm_mask"})
    assert np.abs(free - found).max() > 0.1 * scale


def test_packed_examples_are_summed_up_by_their_last_tokens(one_device, tmp_path):
    theirs = saved(tmp_path, "XLNetForSequenceClassification")
    apply, params = load(tmp_path, {"head": "classification", "labels": 2}, one_device)
    parts = [np.random.default_rng(n).integers(4, 64, (1, n)) for n in (5, 3, 7)]
    packed = {
        "input_ids": np.concatenate([*parts, np.zeros((1, 1), int)], 1),
        "segment_ids": np.repeat([1, 2, 3, 0], [5, 3, 7, 1])[None],
        "starts": np.array([[0, 5, 8]]),
    }
    with torch.no_grad():
        wanted = [theirs(torch.tensor(part)).logits.numpy() for part in parts]
    np.testing.assert_allclose(apply(params, packed)[0], np.concatenate(wanted), atol=1e-5)


def test_another_division_into_heads_is_another_shape(one_device, tmp_path):
    saved(tmp_path, "XLNetModel")
    config = {**read_config(tmp_path), "n_head": 8, "d_head": 4}
    model = build_tuned(config, methods.create(FULL))
    with pytest.raises(UserError, match="rel_attn"):
        pretrained.load(tmp_path, model, one_device, jax.random.key(0))


@pytest.mark.parametrize(
    "change",
    [
        {"attn_type": "uni"},
        {"bi_data": True},
        {"summary_type": "mean"},
        {"summary_use_proj": False},
        {"summary_activation": None},
        {"d_head": 4},
    ],
)
def test_what_is_not_implemented_is_said(change):
    (option,) = change
    with pytest.raises(UserError, match=f"xlnet: {option}"):
        build_tuned({**CASES["xlnet"]().to_dict(), **change}, methods.create(FULL))
