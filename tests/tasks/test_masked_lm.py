"""Masked tokens: which they are, and the loss of transformers."""

import jax
import numpy as np
import pytest
import torch

from ftjax.data.draws import Draws
from ftjax.data.encode import Ragged, ragged
from ftjax.data.loading import Loader
from ftjax.errors import UserError
from ftjax.formats.folder import load_tokenizer
from ftjax.tasks.corruption import mask_tokens
from ftjax.tasks.masked_lm import MaskedLM
from tests.compiler import OPTIONS
from tests.conftest import WORDS
from tests.tasks.small_models import (
    SmallModel,
    batches,
    equals,
    examples_of,
    layout,
    tensors,
    varied,
    write_trained,
    write_words,
)

TASK = MaskedLM()
MASK = 3


def rows_of(count, seed=0, most=24):
    random = np.random.default_rng(seed)
    return [
        {"text": " ".join(random.choice(WORDS, int(random.integers(1, most))))}
        for _ in range(count)
    ]


def made_ids(count=3000, seed=0):
    """Ids from 10 to 999, a special token at both ends; words of one to three tokens."""
    random = np.random.default_rng(seed)
    ids, words = [], []
    for _ in range(count):
        sizes = random.integers(1, 4, int(random.integers(1, 25)))
        number = np.repeat(np.arange(len(sizes)), sizes)
        words.append([-1, *number, -1])
        ids.append([1, *random.integers(10, 1000, len(number)), 2])
    return ragged(ids), ragged(words).values


def near(count, total, share):
    """Within five standard deviations of a share that is drawn."""
    assert abs(count - share * total) < 5 * np.sqrt(share * (1 - share) * total)


@pytest.mark.parametrize("whole", [False, True])
def test_how_many_are_masked_and_how(whole):
    ids, words = made_ids()
    found = mask_tokens(ids, words, 0.15, MASK, 1000, Draws.of((1,), len(ids)), whole)
    chosen, real = Ragged(found.chosen, ids.offsets), Ragged(words, ids.offsets)
    assert not found.chosen[words < 0].any()
    np.testing.assert_array_equal(found.ids[~found.chosen], ids.values[~found.chosen])
    counts = np.array([chosen[i].sum() for i in range(len(ids))])
    wanted = np.array([max(int(0.15 * (real[i] >= 0).sum() + 0.5), 1) for i in range(len(ids))])
    if whole:
        assert (counts <= wanted).all() and (counts >= 1).all()
        assert counts.sum() / wanted.sum() > 0.8
    else:
        np.testing.assert_array_equal(counts, wanted)
    total = int(found.chosen.sum())
    near((found.ids == MASK)[found.chosen].sum(), total, 0.8)
    kept = (found.ids == ids.values)[found.chosen].sum()
    near(kept, total, 0.1 + 0.1 / 1000)
    others = found.ids[found.chosen & (found.ids != MASK) & (found.ids != ids.values)]
    near((others < 500).sum(), len(others), 0.5)  # any of the vocabulary
    places = np.concatenate([np.flatnonzero(chosen[i]) / len(real[i]) for i in range(len(ids))])
    near((places < 0.5).sum(), len(places), 0.5)


def test_whole_words_are_whole():
    ids, words = made_ids()
    found = mask_tokens(ids, words, 0.15, MASK, 1000, Draws.of((1,), len(ids)), True)
    partial = 0
    for i in range(len(ids)):
        chosen, number = (x[slice(*ids.offsets[i : i + 2])] for x in (found.chosen, words))
        sizes = np.bincount(number[number >= 0])
        own = np.bincount(number[chosen], minlength=len(sizes))
        broken = (own > 0) & (own < sizes)
        if broken.any():  # where every word is longer than what may be masked
            most = max(int(0.15 * sizes.sum() + 0.5), 1)
            assert sizes.min() > most and (own > 0).sum() == 1
            partial += 1
    assert partial < len(ids) / 5


def test_words_are_the_tokenizers(tmp_path):
    """Tokens with one number are those of one word."""
    folder = write_trained(tmp_path, "bpe", ["good film bad"] * 3)
    _, _, examples = examples_of(TASK, [{"text": "goodness film unbad"}], folder)
    tokenizer, word = load_tokenizer(folder), examples.tokens["_word"]
    texts = [tokenizer.decode(examples.ids.values[word == n]).strip() for n in range(3)]
    assert texts == ["goodness", "film", "unbad"] and word.max() == 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_words(tmp_path_factory.mktemp("masked"))
    return SmallModel.of(TASK, "bert", "masked_lm", folder), folder


def test_masks_of_epochs(made):
    """Other ones each epoch, the same for the same epoch, from whichever step on."""
    folder = made[1]
    _, _, examples = examples_of(TASK, rows_of(20), folder)
    vary = TASK.variation(load_tokenizer(folder))

    def loader():
        return Loader(examples, 8, layout(examples, 8, False), 5, vary=vary)

    def masked(loader, epoch):
        shown = varied(examples, vary, loader.seed or 0, epoch)
        np.testing.assert_array_equal(shown.tokens["originals"], examples.ids.values)
        read = {}  # of each example in its batch
        for number, planned in enumerate(loader.epoch(epoch).plan):
            batch = loader.epoch(epoch).batch(number).arrays
            rows = zip(planned.places, batch["input_ids"], batch["attention_mask"], strict=True)
            read |= {place: ids[mask > 0].tolist() for place, ids, mask in rows if place >= 0}
        assert [read[n] for n in range(20)] == [shown.ids[n].tolist() for n in range(20)]
        return shown.ids.values.tolist()

    first = loader()
    assert masked(first, 0) == masked(loader(), 0) != masked(first, 1) == masked(loader(), 1)
    whole = [first.at(step).arrays for step in range(9)]
    resumed = loader().iterate(9)
    iterator = first.iterate(9)
    for _ in range(4):
        next(iterator)
    resumed.set_state(iterator.get_state())
    for batch, wanted in zip(resumed, whole[4:], strict=True):
        for name in wanted:
            np.testing.assert_array_equal(batch.arrays[name], wanted[name])
    seen = [r.tobytes() for b in whole[:3] for r in b["originals"][b["weights"] > 0]]
    assert len(seen) == 20
    smaller = Loader(examples, 3, layout(examples, 3, False), 5, vary=vary)
    assert masked(smaller, 0) == masked(first, 0)  # whatever batch an example is in
    several = [Loader(examples, 8, layout(examples, 8, False), 5, part, vary) for part in (
        lambda count: np.arange(count // 2), lambda count: np.arange(count // 2, count)
    )]  # fmt: skip
    for step in range(9):  # and on whichever host, also one without any of the last batch's
        parts = [loader.at(step).arrays for loader in several]
        for name, wanted in whole[step].items():
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), wanted)
    other = Loader(examples, 8, layout(examples, 8, False), 6, vary=vary)
    assert masked(other, 0) != masked(first, 0)
    still = [Loader(examples, 8, layout(examples, 8, False), None, vary=vary) for _ in range(2)]
    assert masked(still[0], 0) == masked(still[1], 0)  # what is evaluated


@pytest.mark.parametrize("packed", [False, True])
def test_loss_equals_transformers(made, packed):
    made, folder = made
    split, names, examples = examples_of(TASK, rows_of(10, seed=2), folder)
    vary = TASK.variation(load_tokenizer(folder))
    shown = varied(examples, vary)
    total, hits, count = 0.0, 0, 0
    for number in range(len(shown)):
        own = slice(*shown.ids.offsets[number : number + 2])
        chosen, wanted = shown.tokens["masked"][own], shown.tokens["originals"][own]
        labels = torch.tensor(np.where(chosen > 0, wanted, -100))[None]
        with torch.no_grad():
            out = made.theirs(input_ids=torch.tensor(shown.ids[number][None]), labels=labels.long())
        total += out.loss.item() * int(chosen.sum())
        hits += int((out.logits.argmax(-1) == labels).sum())
        count += int(chosen.sum())
    loss = made.sums(batches(examples, 4, packed, vary))
    np.testing.assert_allclose(loss, total / count, rtol=1e-5)
    outputs = made.outputs(examples, packed, 4, vary)
    scores = TASK.score(outputs, examples, split, names)
    np.testing.assert_allclose(scores["loss"], total / count, rtol=1e-5)
    assert scores["masked_tokens"] == count and scores["masked_accuracy"] == hits / count
    found = TASK.predictions(outputs, examples, split, names)
    assert sum(row["tokens"] for row in found) == count


def test_gradients_equal_transformers(made):
    made, folder = made
    _, _, examples = examples_of(MaskedLM(rate=0.4), rows_of(8, seed=3), folder)
    vary = MaskedLM(rate=0.4).variation(load_tokenizer(folder))
    (batch,) = batches(examples, 8, vary=vary)
    labels = torch.tensor(np.where(batch["masked"] > 0, batch["originals"], -100)).long()
    made.theirs.zero_grad()
    made.theirs.get_input_embeddings().padding_idx = None  # a random token may be that of padding
    out = made.theirs(**tensors(batch, "input_ids", "attention_mask"), labels=labels)
    out.loss.backward()
    loss, gradients = made.with_task(MaskedLM(rate=0.4)).gradients(batch)
    np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-5)
    equals(gradients, made.theirs)


@pytest.mark.parametrize("packed", [False, True])
def test_prompts_before_masked_texts(made, packed):
    """Masked positions are found behind virtual tokens: as of the same batch with a row each."""
    folder = made[1]
    prompted = SmallModel.of(TASK, "bert", "masked_lm", folder, name="prompt_tuning", length=3)
    _, _, examples = examples_of(TASK, rows_of(6, seed=4), folder)
    vary = TASK.variation(load_tokenizer(folder))
    (batch,) = batches(examples, 6, packed, vary)
    apply = jax.jit(prompted.tuned.apply, compiler_options=OPTIONS)
    logits = np.asarray(apply(prompted.params, batch))  # of all positions
    chosen = batch["masked"] > 0
    at = torch.tensor(logits[chosen]), torch.tensor(batch["originals"][chosen]).long()
    wanted = torch.nn.functional.cross_entropy(*at).item()
    np.testing.assert_allclose(prompted.sums([batch]), wanted, rtol=1e-5)


def test_what_has_no_mask_is_refused(tmp_path):
    tokenizer = load_tokenizer(write_words(tmp_path))
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="tokenizer has no mask token"):
        TASK.variation(tokenizer)
    for rate in (0.0, 1.0):
        with pytest.raises(UserError, match="task.rate"):
            MaskedLM(rate=rate)
