"""BERT equals transformers' BERT, however its layers are run."""

import jax
import numpy as np
import pytest
import torch
import transformers

from ftjax import pretrained
from ftjax.build import build_tuned
from ftjax.data.encode import Examples, Ragged
from ftjax.data.loading import Loader
from ftjax.data.packed_layout import packed_layout
from ftjax.data.planning import EMPTY, Layout
from ftjax.errors import UserError
from ftjax.formats.folder import locate
from tests.conftest import CONFIG, HEAD, build, make_batch, write_tiny
from tests.covering import covering, product
from tests.models.random_models import quick

FULL = {"name": "full"}


def load(folder, model, mesh):
    return pretrained.load(folder, model, mesh, jax.random.key(0))[0]


def torch_inputs(batch):
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: torch.tensor(batch[name]) for name in names if name in batch}


def real_batch(rows=6, length=40):
    batch = make_batch(rows, length)
    batch["input_ids"] = (
        np.random.default_rng(3).integers(1000, 20000, (rows, length)) * batch["attention_mask"]
    )
    return batch


@pytest.mark.parametrize("segments", ["unrolled", (2, 4)])
def test_minilm_hidden_states(one_device, segments):
    folder = locate("minilm")
    model = build(folder, FULL, {"segments": segments}, {})
    batch = real_batch()
    ours = quick(model.apply)(load(folder, model, one_device), batch)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = reference(**torch_inputs(batch)).last_hidden_state.numpy()
    real = batch["attention_mask"] > 0
    np.testing.assert_allclose(np.asarray(ours)[real], theirs[real], atol=1e-5)


def reference_classifier(folder, params):
    """transformers' classifier over the same encoder, with our head."""
    reference = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=2)
    with torch.no_grad():
        kernel = torch.tensor(np.asarray(params["classifier/kernel"]).T)
        reference.classifier.weight.copy_(kernel)
        reference.classifier.bias.copy_(torch.tensor(np.asarray(params["classifier/bias"])))
    return reference.eval()


def test_classifier_logits_and_gradients(tiny, one_device):
    model = build(tiny, FULL)
    params, batch = load(tiny, model, one_device), make_batch()
    reference = reference_classifier(tiny, params)
    labels = torch.tensor(batch["labels"])
    out = reference(**torch_inputs(batch), labels=labels)
    out.loss.backward()

    def loss(params):
        logits = model.apply(params, batch)
        picked = jax.nn.log_softmax(logits)[np.arange(len(labels)), batch["labels"]]
        return -picked.mean(), logits

    grads, logits = quick(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(logits, out.logits.detach().numpy(), atol=1e-5)
    theirs = dict(reference.named_parameters())
    for ours, name in {
        "embeddings/word/embedding": "bert.embeddings.word_embeddings.weight",
        "embeddings/position/embedding": "bert.embeddings.position_embeddings.weight",
        "encoder/layer_0/attention/query/kernel": "bert.encoder.layer.0.attention.self.query.weight",
        "encoder/layer_3/ffn/down/kernel": "bert.encoder.layer.3.output.dense.weight",
        "encoder/layer_3/ffn_norm/scale": "bert.encoder.layer.3.output.LayerNorm.weight",
        "pooler/kernel": "bert.pooler.dense.weight",
    }.items():
        wanted = theirs[name].grad.numpy()
        wanted = wanted.T if ours.endswith("kernel") else wanted
        np.testing.assert_allclose(grads[ours], wanted, atol=2e-5, err_msg=ours)


def test_packed_examples_do_not_see_each_other(tiny, one_device):
    model = build(tiny, FULL, {}, {})
    params = load(tiny, model, one_device)
    random = np.random.default_rng(0)
    parts = [random.integers(5, 64, (1, n)) for n in (5, 3, 7)]
    packed = np.concatenate([*parts, np.zeros((1, 1), int)], 1)
    segments = np.repeat([1, 2, 3, 0], [5, 3, 7, 1])[None]
    positions = np.concatenate([np.arange(5), np.arange(3), np.arange(7), [0]])[None]
    inputs = {"input_ids": packed, "segment_ids": segments, "position_ids": positions}
    apply = quick(model.apply)
    together = apply(params, inputs)
    apart = [apply(params, {"input_ids": part}) for part in parts]
    np.testing.assert_allclose(together[:, :15], np.concatenate(apart, 1), atol=1e-5)


POOLED = [(pooling, segments) for pooling in ("cls", "mean") for segments in ("unrolled", "scan")]


@pytest.mark.parametrize(("pooling", "segments"), product(POOLED, covering(POOLED)))
def test_packed_rows_give_the_logits_of_their_examples(tiny, one_device, pooling, segments):
    head = {**HEAD, "pooling": pooling}
    model = build(tiny, FULL, {"segments": segments}, head)
    params = load(tiny, model, one_device)
    random = np.random.default_rng(0)
    lengths = random.integers(3, 15, 20)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    types = np.concatenate([np.arange(n) > n // 2 for n in lengths]).astype(np.int32)
    ids = random.integers(5, 64, offsets[-1]).astype(np.int32)
    examples = Examples(
        Ragged(ids, offsets), {"token_type_ids": types}, {"labels": np.arange(20) % 2}
    )
    wanted, found, apply = np.zeros((20, 2)), np.full((20, 2), np.nan), quick(model.apply)
    for layout, outputs in (
        (Layout((16,)), wanted),
        (packed_layout(lengths, 8), found),
    ):
        for planned, batch in Loader(examples, 8, layout, 0):
            real = planned.places != EMPTY
            outputs[planned.places[real]] = np.asarray(apply(params, batch))[real]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_padding_changes_nothing(tiny, one_device):
    model = build(tiny, FULL)
    params, batch = load(tiny, model, one_device), make_batch(4, 8)
    wider = {
        name: np.pad(batch[name], ((0, 0), (0, 9)), constant_values=7 * (name == "input_ids"))
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    apply = quick(model.apply)
    np.testing.assert_allclose(apply(params, wider), apply(params, batch), atol=1e-5)


def test_mean_pooling_averages_real_tokens(tiny, one_device):
    model = build(tiny, FULL, {}, {**HEAD, "pooling": "mean"})
    params, batch = load(tiny, model, one_device), make_batch()
    assert not any(path.startswith("pooler") for path in params)
    reference = transformers.AutoModel.from_pretrained(tiny).eval()
    with torch.no_grad():
        hidden = reference(**torch_inputs(batch)).last_hidden_state.numpy()
    mask = batch["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    wanted = mean @ np.asarray(params["classifier/kernel"]) + np.asarray(params["classifier/bias"])
    np.testing.assert_allclose(quick(model.apply)(params, batch), wanted, atol=1e-5)


def test_bfloat16_is_near(tmp_path, one_device):
    tiny, batch = write_tiny(tmp_path / "calm", initializer_range=0.1), make_batch()
    wide, narrow = build(tiny, FULL), build(tiny, FULL, {"dtype": "bfloat16"})
    params = load(tiny, wide, one_device)
    out = quick(narrow.apply)(params, batch)
    assert out.dtype == np.float32
    wanted = np.asarray(quick(wide.apply)(params, batch))
    np.testing.assert_allclose(out, wanted, atol=3e-2 * np.abs(wanted).max())


def test_dropout_is_on_exactly_with_a_key_and_keeps_the_mean(tiny, one_device):
    from ftjax.dropout import dropout

    model = build(tiny, FULL)
    params, batch = load(tiny, model, one_device), make_batch()
    apply = quick(model.apply)
    calm = apply(params, batch)
    noisy = apply(params, batch, jax.random.key(0))
    np.testing.assert_array_equal(noisy, apply(params, batch, jax.random.key(0)))
    assert np.abs(noisy - calm).max() > 1e-3
    x = np.ones((512, 513), np.float32)
    for rate in (0.1, 0.5):
        masks = [np.asarray(dropout(jax.random.key(seed), x, rate)) for seed in range(2)]
        for mask in masks:
            count, error = mask.size, 4 * np.sqrt(rate * (1 - rate) / mask.size)
            assert abs((mask == 0).mean() - rate) < error
            np.testing.assert_allclose(mask[mask > 0], 1 / (1 - rate), rtol=1e-6)
            # Neighbours, along both axes, and masks of other keys are independent.
            zero = (mask == 0) - rate
            for a, b in ((zero[1:], zero[:-1]), (zero[:, 1:], zero[:, :-1])):
                assert abs((a * b).mean()) < 4 * rate * (1 - rate) / np.sqrt(count)
        a, b = ((mask == 0) - rate for mask in masks)
        assert abs((a * b).mean()) < 4 * rate * (1 - rate) / np.sqrt(a.size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "mamba.*not known .did you mean .*llama"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"hidden_act": "mish"}, "mish"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_what_is_not_implemented_is_said(change, message):
    from ftjax import methods

    with pytest.raises(UserError, match=message):
        build_tuned({**CONFIG, **change}, methods.create(FULL))
