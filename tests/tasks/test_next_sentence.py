"""BERT's pretraining: against transformers' model, and which second halves are exchanged."""

import jax
import numpy as np
import pytest
import torch

from ftjax.data.draws import Draws
from ftjax.data.encode import Ragged
from ftjax.formats.folder import load_tokenizer
from ftjax.tasks.next_sentence import NextSentence, exchanged, halves
from tests.compiler import OPTIONS
from tests.conftest import WORDS
from tests.tasks.small_models import SmallModel, batches, equals, examples_of, tensors, write_words

TASK = NextSentence()


def rows_of(count, seed=0):
    random = np.random.default_rng(seed)
    return [
        {"text": " ".join(random.choice(WORDS, int(random.integers(4, 24))))} for _ in range(count)
    ]


def test_halves_by_hand():
    assert halves("One. Two two. Three.") == ("One. Two two.", "Three.")
    assert halves("One is long and longer. Two. Three.") == (
        "One is long and longer.",
        "Two. Three.",
    )
    assert halves("no end here at all") == ("no end", "here at all")
    assert halves("It was 3.5 or 4. So") == ("It was 3.5 or 4.", "So")
    assert halves("一句。两句！") == ("一句。", "两句！")
    assert halves("a\nb") == ("a", "b") and halves("word") == ("wo", "rd")
    assert halves("x") == ("x", "x")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = write_words(tmp_path_factory.mktemp("pairs"))
    return SmallModel.of(TASK, "bert", "pretraining", folder, labels=2), folder


def test_second_halves_are_exchanged(made):
    folder = made[1]
    rows = rows_of(400)
    _, _, examples = examples_of(TASK, rows, folder)
    found = exchanged(examples, np.random.default_rng(0))
    tokenizer, labels = load_tokenizer(folder), found.arrays["labels"]
    assert abs(labels.mean() - 0.5) < 5 * np.sqrt(0.25 / 400)
    firsts, seconds = zip(*(halves(row["text"]) for row in rows), strict=True)
    kinds = Ragged(found.tokens["token_type_ids"], found.ids.offsets)
    words = Ragged(found.tokens["_word"], found.ids.offsets)
    whole = Ragged(examples.tokens["token_type_ids"], examples.ids.offsets)
    others = set()
    for i, label in enumerate(labels):
        ids, second = found.ids[i], kinds[i] > 0
        assert tokenizer.decode(ids[~second], skip_special_tokens=True) == firsts[i]
        tail = tokenizer.decode(ids[second], skip_special_tokens=True)
        assert ids[-1] == tokenizer.sep_token_id and words[i][-1] == -1
        if not label:
            assert tail == seconds[i]
        else:
            assert any(each.startswith(tail) for each in seconds)
            others.add(tail)
        assert len(ids) <= max(examples.ids.lengths)
    assert len(others) > 100 and len(whole) == len(kinds)
    alone = exchanged(examples_of(TASK, rows[:1], folder)[2], np.random.default_rng(0))
    assert alone.arrays["labels"].tolist() == [0]


@pytest.mark.parametrize("packed", [False, True])
def test_losses_equal_transformers(made, packed):
    """Of each row alone: the mean over its masked tokens, and of the pair."""
    made, folder = made
    split, names, examples = examples_of(TASK, rows_of(10, seed=2), folder)
    vary = TASK.variation(load_tokenizer(folder))
    shown = vary(examples, Draws.of((0, 0, 1), len(examples)))
    losses, hits = [], []
    for number in range(len(shown)):
        own = slice(*shown.ids.offsets[number : number + 2])
        labels = np.where(shown.tokens["masked"][own] > 0, shown.tokens["originals"][own], -100)
        follows = torch.tensor(shown.arrays["labels"][number : number + 1]).long()
        with torch.no_grad():
            out = made.theirs(
                input_ids=torch.tensor(shown.ids[number][None]),
                token_type_ids=torch.tensor(shown.tokens["token_type_ids"][own][None]),
                labels=torch.tensor(labels[None]).long(),
                next_sentence_label=follows,
            )
        losses.append(out.loss.item())
        hits.append(int(out.seq_relationship_logits.argmax()) == int(follows))
    loss = made.sums(batches(examples, 4, packed, vary))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    outputs = made.outputs(examples, packed, 4, vary)
    each = outputs[:, 0] / outputs[:, 2] + outputs[:, 3]
    np.testing.assert_allclose(each, losses, rtol=1e-4)
    scores = TASK.score(outputs, examples, split, names)
    assert scores["next_sentence_accuracy"] == np.mean(hits)


def test_gradients_equal_transformers(made):
    """Of a row, whose two losses are transformers'."""
    made, folder = made
    _, _, examples = examples_of(TASK, rows_of(4, seed=3), folder)
    vary = TASK.variation(load_tokenizer(folder))
    batch = {name: array[:1] for name, array in batches(examples, 4, vary=vary)[0].items()}
    labels = torch.tensor(np.where(batch["masked"] > 0, batch["originals"], -100)).long()
    made.theirs.zero_grad()
    out = made.theirs(
        **tensors(batch, "input_ids", "attention_mask", "token_type_ids"),
        labels=labels,
        next_sentence_label=torch.tensor(batch["labels"]).long(),
    )
    out.loss.backward()
    loss, gradients = made.gradients(batch)
    np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-5)
    equals(gradients, made.theirs)


def test_prompts_before_pairs(made):
    """Virtual tokens in front: outputs at masked positions are those of all positions there."""
    folder = made[1]
    prompted = SmallModel.of(TASK, "bert", "pretraining", folder, 2, name="prompt_tuning", length=3)
    _, _, examples = examples_of(TASK, rows_of(4, seed=4), folder)
    vary = TASK.variation(load_tokenizer(folder))
    apply = jax.jit(prompted.tuned.apply, compiler_options=OPTIONS)
    for packed in (False, True):
        batch = batches(examples, 4, packed, vary)[0]
        words, _ = map(np.asarray, apply(prompted.params, batch))
        at = np.argsort(-batch["masked"], 1, kind="stable")[:, :3]
        asked = {**batch, "at_positions": at}
        found, _ = apply(prompted.params, asked)
        np.testing.assert_allclose(found, np.take_along_axis(words, at[..., None], 1), atol=1e-5)
