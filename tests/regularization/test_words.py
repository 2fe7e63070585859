"""What is done to embedded words, by its own formulas; and that it is done to the real ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from ftjax.regularization.words import cutoff, noise
from ftjax.testing import build as build_base
from ftjax.testing import make_batch
from tests.models.random_models import build, inputs, kind_of, natural, parameters, quick

ALPHA, SIZE = 5.0, 300


def test_noise_is_neftunes():
    """Of full rows as in transformers; of shorter ones, and of packed ones, by their real length."""
    length, sizes = 40, np.array([40, 10])
    mask = (np.arange(length) < sizes[:, None]).astype(np.int32)
    found = np.asarray(
        noise(jax.random.key(0), {"input_ids": mask, "attention_mask": mask}, SIZE, ALPHA)
    )
    module = torch.nn.Identity()
    module.neftune_noise_alpha = ALPHA
    theirs = neftune_post_forward_hook(module.train(), None, torch.zeros(1, length, SIZE)).numpy()
    np.testing.assert_allclose(found[0].std(), theirs.std(), rtol=0.05)
    np.testing.assert_allclose(np.abs(found[0]).max(), np.abs(theirs).max(), rtol=0.01)
    for row, size in enumerate(sizes):
        most = ALPHA / np.sqrt(size * SIZE)
        assert 0.99 * most < np.abs(found[row]).max() <= most
        np.testing.assert_allclose(found[row, :size].std(), most / np.sqrt(3), rtol=0.05)
    assert not found[1, 10:].any()
    segments = np.repeat([[1, 2, 0]], [25, 9, 6], axis=1)
    packed = {"input_ids": segments, "segment_ids": segments, "starts": np.array([[0, 25, 0]])}
    found = np.asarray(noise(jax.random.key(1), packed, SIZE, ALPHA))[0]
    for here, size in ((slice(25), 25), (slice(25, 34), 9)):
        most = ALPHA / np.sqrt(size * SIZE)
        assert 0.99 * most < np.abs(found[here]).max() <= most
    assert not found[34:].any()


def test_cutoff_zeroes_whole_words():
    x = np.random.default_rng(0).normal(size=(50, 80, 3))
    found = np.asarray(cutoff(jax.random.key(0), jnp.asarray(x), 0.15))
    cut = (found == 0).all(-1)
    np.testing.assert_allclose(found, np.where(cut[..., None], 0, x), rtol=1e-6)
    np.testing.assert_allclose(cut.mean(), 0.15, atol=0.02)


def other_words(model, params, batch, others):
    """Outputs where embeddings of other words are put in the place of a batch's."""
    seen = []

    def words(x):
        seen.append(x)
        return params[f"{model.base.words}/embedding"][others]

    outputs = model.apply(params, batch, words=words)
    return jax.tree.leaves(outputs), seen[0]


@pytest.mark.parametrize("case", ["albert", "xlnet", "modernbert", "gpt2", "gemma", "bart"])
def test_embedded_words_stand_for_words(case):
    """Whatever a family makes of them besides: scales, projections, other look-ups."""
    model = build(case, natural(case))
    params, batch = parameters(model), inputs(case)
    if case == "gpt2":  # looks token types up in the same table
        batch["token_type_ids"] = batch["input_ids"][:, ::-1].copy()
    if kind_of(case) == "encoder-decoder":
        batch["decoder_input_ids"] = batch["input_ids"][:, :7].copy()
    others = np.random.default_rng(9).integers(4, 64, batch["input_ids"].shape)
    found, seen = quick(lambda p: other_words(model, p, batch, others))(params)
    wanted = quick(model.apply)(params, {**batch, "input_ids": others})
    for a, b in zip(found, jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    table = params[f"{model.base.words}/embedding"]
    np.testing.assert_allclose(seen, table[batch["input_ids"]], rtol=1e-6)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_are_no_words(method, layout):
    model = build_base("bert", {"name": method, "length": 3})
    keys = jax.random.split(jax.random.key(0), len(model.shapes))
    params = {
        p: 0.3 * jax.random.normal(key, x.shape)
        for key, (p, x) in zip(keys, model.shapes.items(), strict=True)
    }
    batch = make_batch("bert", 2, 9)
    if layout == "packed":
        segments = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 0]] * 2, np.int32)
        batch = {"input_ids": batch["input_ids"], "segment_ids": segments}
        batch["starts"] = np.array([[0, 5], [0, 5]])
        batch["position_ids"] = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 0]] * 2)
    others = np.random.default_rng(9).integers(4, 64, batch["input_ids"].shape)
    found, seen = quick(lambda p: other_words(model, p, batch, others))(params)
    wanted = quick(model.apply)(params, {**batch, "input_ids": others})
    np.testing.assert_allclose(found[0], wanted, atol=1e-5)
    assert np.abs(np.asarray(quick(model.apply)(params, batch)) - wanted).max() > 1e-2
    np.testing.assert_allclose(
        seen, params["embeddings/word/embedding"][batch["input_ids"]], rtol=1e-6
    )
