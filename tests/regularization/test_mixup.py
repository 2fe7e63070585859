"""Mixup's loss, as of transformers' model on mixed embeddings."""

import jax
import numpy as np
import pytest
import torch

from ftjax import pretrained, tasks
from ftjax.errors import UserError
from ftjax.regularization.loss import regularized
from ftjax.regularization.mixup import shares
from ftjax.regularization.words import key_of
from ftjax.testing import build as build_base
from tests.conftest import build, make_batch
from tests.models.random_models import quick
from tests.models.test_bert import reference_classifier
from tests.regularization.settings import config_of, loss_of

ALPHA = 0.4


def test_shares_are_of_beta():
    """And 1 where there is no example, or none to mix with."""
    weights = np.ones(20_000, np.float32)
    weights[:100] = 0
    share = np.asarray(shares(jax.random.key(0), {"weights": weights}, ALPHA))
    assert (share[:100] == 1).all() and (share[-100:] == 1).all()
    drawn = share[100:-100]
    np.testing.assert_allclose(drawn.mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(drawn.var(), 0.25 / (2 * ALPHA + 1), rtol=0.03)


def test_loss_is_that_of_mixed_embeddings(tiny, one_device):
    """Rows i and n - 1 - i, of different lengths; the first row is empty."""
    model, batch, key = build(tiny, {"name": "full"}), make_batch(6), jax.random.key(3)
    batch["weights"][0] = 0
    params, _ = pretrained.load(tiny, model, one_device, jax.random.key(0))
    config = config_of(mixup=ALPHA)

    class Calm:  # the model without dropout
        base = model.base

        def apply(self, params, batch, key, words):
            return model.apply(params, batch, words=words)

    loss = quick(regularized(config, tasks.create(config.task), Calm()))(params, batch, key)
    share = torch.tensor(np.array(shares(key_of("mixup", key), batch, ALPHA)))
    assert share[0] == share[-1] == 1 and ((share > 0) & (share < 1)).sum() == 4
    reference = reference_classifier(tiny, params)
    ids, mask = (torch.tensor(batch[name]) for name in ("input_ids", "attention_mask"))
    words = reference.bert.embeddings.word_embeddings(ids) * mask[..., None]
    own = share[:, None, None]
    with torch.no_grad():
        logits = reference(
            inputs_embeds=own * words + (1 - own) * words.flip(0),
            attention_mask=torch.where(share[:, None] < 1, torch.maximum(mask, mask.flip(0)), mask),
            token_type_ids=torch.tensor(batch["token_type_ids"]),
        ).logits
    labels = torch.tensor(batch["labels"])
    each = torch.nn.functional.cross_entropy
    mixed = share * each(logits, labels, reduction="none")
    mixed += (1 - share) * each(logits, labels.flip(0), reduction="none")
    np.testing.assert_allclose(loss.total, mixed[1:].sum(), rtol=1e-5)
    assert loss.weight == 5


def test_what_cannot_be_mixed_is_said():
    llama, t5 = build_base("llama", {"name": "full"}), build_base("t5", {"name": "full"})
    language = build_base("llama", {"name": "full"}, {}, {"head": "causal_lm"})
    for config, model, message in (
        (config_of("causal_lm", mixup=ALPHA), language, "task.name=causal_lm"),
        (config_of(mixup=ALPHA, batching="pack"), llama, "data.batching=bucket"),
        (config_of(mixup=ALPHA), t5, "encoder-decoder"),
    ):
        with pytest.raises(UserError, match=rf"regularization\.mixup=0\.4.*{message}"):
            loss_of(config, model)
