"""Texts from texts: losses against transformers' models, metrics against their libraries."""

import json
from functools import partial

import jax
import numpy as np
import optax
import pytest
import torch
from transformers.trainer_pt_utils import LabelSmoother

from ftjax.data.encode import Examples, ragged
from ftjax.data.loading import Loader
from ftjax.data.planning import EMPTY, bucket_layout, paired_layout
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.partition import merge
from ftjax.tasks.seq2seq import Seq2Seq
from tests.compiler import OPTIONS
from tests.conftest import WORDS
from tests.covering import covering, product
from tests.tasks.small_models import (
    SmallModel,
    batches,
    equals,
    examples_of,
    tensors,
    write_trained,
    write_words,
)

TASK = Seq2Seq(max_target=16)


def rows_of(count, seed=0):
    random = np.random.default_rng(seed)

    def text(most):
        return " ".join(random.choice(WORDS, int(random.integers(1, most))))

    return [{"source": text(20), "target": text(12)} for _ in range(count)]


def made_batch(case, config, rows=4, seed=0):
    """Ids that end as the case's tokenizer ends texts, padded."""
    random = np.random.default_rng(seed)
    ids, targets = random.integers(5, 64, (rows, 9)), random.integers(5, 64, (rows, 7))
    read, written = 9 - np.arange(rows) % 4, 7 - np.arange(rows)[::-1] % 3
    for table, sizes in ((ids, read), (targets, written)):
        table[np.arange(rows), sizes - 1 - (case == "mbart")] = config.eos_token_id
    mask, real = (np.arange(len(t[0])) < n[:, None] for t, n in ((ids, read), (targets, written)))
    return {
        "input_ids": ids * mask,
        "attention_mask": mask.astype(np.int32),
        "targets": targets * real,
        "target_weights": real.astype(np.float32),
        "weights": np.ones(rows, np.float32),
    }


CASES = [(case,) for case in ("t5", "t5-v1.1", "bart", "mbart", "marian")]


@pytest.mark.parametrize("case", product(CASES, [("t5",), ("bart",), ("mbart",)]))
def test_loss_and_gradients_equal_transformers(case, tmp_path):
    made = SmallModel.of(TASK, case, "seq2seq_lm", tmp_path)
    batch = made_batch(case, made.theirs.config)
    labels = np.where(batch["target_weights"] > 0, batch["targets"], -100)
    out = made.theirs(**tensors(batch, "input_ids", "attention_mask"), labels=torch.tensor(labels))
    out.loss.backward()
    found_loss, gradients = made.gradients(batch)
    np.testing.assert_allclose(found_loss, out.loss.item(), rtol=1e-5)
    equals(gradients, made.theirs)
    if case != "t5":  # the families share what follows
        return
    apply = jax.jit(partial(made.tuned.apply, made.params), compiler_options=OPTIONS)
    found = np.asarray(TASK.outputs(apply, batch))
    np.testing.assert_allclose(found.sum(0)[0] / found.sum(0)[2], out.loss.item(), rtol=1e-5)
    hits = (out.logits.argmax(-1).numpy() == labels).sum()
    assert found.sum(0)[1] == hits and (found[:, 2] == batch["target_weights"].sum(1)).all()


@pytest.mark.parametrize("case", product([("t5",), ("bart",)], [("t5",)]))
def test_label_smoothing_equals_transformers(case, tmp_path):
    made = SmallModel.of(Seq2Seq(max_target=16, label_smoothing=0.1), case, "seq2seq_lm", tmp_path)
    batch = made_batch(case, made.theirs.config)
    labels = torch.tensor(np.where(batch["target_weights"] > 0, batch["targets"], -100))
    out = made.theirs(**tensors(batch, "input_ids", "attention_mask"), labels=labels)
    loss = LabelSmoother(epsilon=0.1)(out, labels)
    loss.backward()
    found, gradients = made.gradients(batch, train=True)
    np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
    equals(gradients, made.theirs)
    outputs = made.task.outputs(partial(made.tuned.apply, made.params), batch)  # never smoothed
    np.testing.assert_allclose(outputs[:, 0].sum() / outputs[:, 2].sum(), out.loss.item(), 1e-5)


def test_a_share_of_smoothing_that_is_none():
    with pytest.raises(UserError, match=r"task.label_smoothing=1.0 must be in \[0, 1\)"):
        Seq2Seq(label_smoothing=1.0)


METHODS = {"lora": {"rank": 4}, "prompt_tuning": {"length": 4}}
LEARN = [(case, name) for case in ("t5", "bart") for name in METHODS]


@pytest.mark.parametrize(("case", "name"), product(LEARN, covering(LEARN)))
def test_methods_learn(case, name, tmp_path):
    """A few steps of Adam on one batch."""
    made = SmallModel.of(TASK, case, "seq2seq_lm", tmp_path, name=name, **METHODS[name])
    batch = made_batch(case, made.theirs.config)
    trainable, frozen = made.tuned.partition.split(made.params)
    optimizer = optax.adam(0.02)

    @partial(jax.jit, compiler_options=OPTIONS)
    def step(params, state):
        def mean(params):
            loss = TASK.loss(partial(made.tuned.apply, merge(params, frozen)), batch, True)
            return loss.total / loss.weight

        loss, grads = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(grads, state)
        return loss, optax.apply_updates(params, updates), state

    state, losses = optimizer.init(trainable), []
    for _ in range(12):
        loss, trainable, state = step(trainable, state)
        losses.append(float(loss))
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 0.1, losses
    labels = np.where(batch["target_weights"] > 0, batch["targets"], -100)
    if name == "lora":  # which starts as the model is
        inputs = tensors(batch, "input_ids", "attention_mask")
        with torch.no_grad():
            wanted = made.theirs(**inputs, labels=torch.tensor(labels)).loss.item()
        np.testing.assert_allclose(losses[0], wanted, rtol=1e-5)


def test_scores_have_the_loss_of_training(tmp_path):
    folder = write_words(tmp_path, eos="[SEP]")
    made = SmallModel.of(TASK, "t5", "seq2seq_lm", folder)
    split, names, examples = examples_of(TASK, rows_of(13), folder)
    scores = TASK.score(made.outputs(examples), examples, split, names)
    np.testing.assert_allclose(scores["loss"], made.sums(batches(examples, 4)), rtol=1e-5)
    np.testing.assert_allclose(scores["perplexity"], np.exp(scores["loss"]))
    assert scores["tokens"] == examples.decoder.lengths.sum() and scores["examples"] == 13


def test_tokens_equal_the_tokenizers(tmp_path):
    folder = write_trained(tmp_path, "unigram", [" ".join(WORDS)] * 3)
    task, rows = Seq2Seq(prefix="film: ", max_target=8), rows_of(12)
    _, _, examples = examples_of(task, rows, folder, 16)
    tokenizer, cut = load_tokenizer(folder), 0
    for i, row in enumerate(rows):
        source = tokenizer("film: " + row["source"])["input_ids"]
        target = tokenizer(row["target"])["input_ids"]
        assert examples.ids[i].tolist() == (
            source if len(source) <= 16 else [*source[:15], source[-1]]
        )
        assert target[-1] == tokenizer.eos_token_id
        wanted = target if len(target) <= 8 else [*target[:7], target[-1]]
        assert examples.decoder[i].tolist() == wanted
        cut += len(source) > 16 or len(target) > 8
    assert examples.truncated == cut > 0


def test_ends_of_targets(tmp_path):
    """Of tokenizers that do not end texts, and of mBART's, which ends them with the language."""
    row = [{"source": "good", "target": "good bad"}]
    tokenizer = load_tokenizer(write_trained(tmp_path / "bpe", "bpe", ["good bad"] * 3))
    bare = tokenizer("good bad", add_special_tokens=False)["input_ids"]
    _, _, examples = examples_of(TASK, row, tmp_path / "bpe")
    assert examples.decoder[0].tolist() == [*bare, tokenizer.eos_token_id]
    folder = write_words(tmp_path / "mbart", eos="[SEP]")
    file = folder / "tokenizer.json"
    kept = json.loads(file.read_text())
    kept["post_processor"] = {  # a text, the end, and a word for a language
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            *({"SpecialToken": {"id": t, "type_id": 0}} for t in ("[SEP]", "film")),
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            t: {"id": t, "ids": [kept["model"]["vocab"][t]], "tokens": [t]}
            for t in ("[SEP]", "film")
        },
    }
    file.write_text(json.dumps(kept))
    for limit, wanted in ((16, "good bad [SEP] film"), (3, "good [SEP] film")):
        _, _, examples = examples_of(Seq2Seq(max_target=limit), row, folder)
        assert load_tokenizer(folder).decode(examples.decoder[0]) == wanted


@pytest.mark.parametrize("seed", [0, None])
def test_layouts_of_two_lengths_hold_every_example_once(seed):
    random = np.random.default_rng(0)
    read = random.integers(1, 60, 150)
    written = np.minimum(read, 30) // 2 + random.integers(1, 20, 150)
    written[::50] = 70  # a few that do not fit where their sources do
    examples = Examples(
        ragged([np.full(n, i + 1) for i, n in enumerate(read)]),
        decoder=ragged([np.full(n, i + 1) for i, n in enumerate(written)]),
    )
    layout = paired_layout(bucket_layout(read, 4), read, written)
    assert len(layout.written) == len(layout.lengths) and layout.written[0] < layout.written[-1]
    loader, seen = Loader(examples, 16, layout, seed), []
    for planned, batch in loader:
        assert (planned.length, planned.written) in zip(layout.lengths, layout.written, strict=True)
        for place, number in enumerate(planned.places):
            ids, targets = batch["input_ids"][place], batch["targets"][place]
            if number == EMPTY:
                assert not ids.any() and not batch["target_weights"][place].any()
                continue
            assert (ids == number + 1).sum() == batch["attention_mask"][place].sum() == read[number]
            assert (targets == number + 1).sum() == written[number]
            assert batch["target_weights"][place].sum() == written[number]
            seen.append(number)
    assert sorted(seen) == list(range(150))
    assert sum(len(p.places) * (p.length + p.written) for p, _ in loader) < 2 * (
        read.sum() + written.sum()
    )


def test_bad_options_and_rows_are_named(tiny):
    with pytest.raises(UserError, match=r"task\.languages: the model's tokenizer has no languages"):
        examples_of(Seq2Seq(languages=("en_XX", "zh_CN")), rows_of(1), tiny)
    with pytest.raises(UserError, match=r"task\.languages=.* must be a source's and a target's"):
        Seq2Seq(languages=("en_XX",))
    for changes in ({"metrics": "bleu"}, {"max_target": 1}, {"num_beams": 0}):
        with pytest.raises(UserError, match=f"task.*{next(iter(changes))}"):
            Seq2Seq(**changes)
    with pytest.raises(UserError, match="row 2: field 'target' is empty"):
        examples_of(TASK, [*rows_of(1), {"source": "a", "target": " "}], tiny)
